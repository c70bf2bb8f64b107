"""What a call costs beside time: operations, memory, and on CUDA launches and waits."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from earlytom.bench.flops import encoder_flops, encoder_work, llm_flops, prompt_work
from earlytom.bench.memory import peak_of_allocations
from earlytom.bench.speed.workload import Workload
from earlytom.method import Method
from earlytom.report import Report

_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass(frozen=True)
class Counts:
    """Counted during one call.

    Attributes:
        flops: operations inside ``encoder``, ``projector`` and ``llm`` by PyTorch's counter (what
            compression does in there included), and ``compression``: all others.
        allocated_mib: most that was allocated at a time, on top of weights and inputs.
        launches: kernels started; None on the CPU.
        waits: times the host waited for the device; None on the CPU.
    """

    flops: dict[str, float]
    allocated_mib: float
    launches: int | None = None
    waits: int | None = None


def count(call: Callable[[], Any], work: Workload) -> Counts:
    """Run ``call`` once under PyTorch's operation counter and profiler."""
    device = work.device
    counter = FlopCounterMode(display=False, custom_mapping=_cpu_attention())
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    profile = torch.profiler.profile(activities=kinds, profile_memory=device.type == "cpu")
    with _silent_stderr():
        profile.start()
    try:
        with counter, _parts(work, counter) as flops:
            call()
            if work.adapter.packed:  # the projector is a part of the tower
                flops["encoder"] -= flops["projector"]
            flops["compression"] = counter.get_total_flops() - sum(flops.values())
    finally:
        with _silent_stderr():
            profile.stop()
    if device.type == "cpu":
        return Counts(flops, peak_of_allocations(profile))
    names = [e.name() for e in profile.profiler.kineto_results.events()]  # type: ignore[union-attr]
    return Counts(
        flops,
        (torch.cuda.max_memory_allocated(device) - before) / (1 << 20),
        launches=sum("LaunchKernel" in n for n in names),
        waits=sum(n in _WAITS for n in names),
    )


def closed_form(work: Workload, method: Method | None, report: Report | None) -> dict[str, float]:
    """Return the operations of a prefill by formula: ``encoder``, ``projector``, ``llm``."""
    adapter, frames, grid = work.adapter, work.steps, work.grid
    videos: list[Any] = [None] * len(work.raw) if report is None else list(report.videos)
    encoder = [
        encoder_flops(adapter, encoder_work(adapter, frames, method, v, grid)) for v in videos
    ]
    columns = work.inputs(torch.empty(0))["input_ids"].shape[1]
    if report is not None and report.prompt_columns is not None:
        columns = report.prompt_columns[1]
    llm = llm_flops(work.model, adapter, prompt_work(adapter, columns, method, report))
    return {
        "encoder": sum(e for e, _ in encoder),
        "projector": sum(p for _, p in encoder),
        "llm": llm * len(videos),
    }


@contextlib.contextmanager
def _parts(work: Workload, counter: FlopCounterMode) -> Iterator[dict[str, float]]:
    """Add up what is counted between entering and leaving the modules of every part."""
    adapter = work.adapter
    parts = {
        "encoder": [adapter.tower],
        "projector": adapter.projectors,
        "llm": [adapter.language_model, work.model.get_output_embeddings()],
    }
    found, begun, hooks = dict.fromkeys(parts, 0.0), dict.fromkeys(parts, 0.0), []

    def enter(part: str, *_: Any) -> None:
        begun[part] = counter.get_total_flops()

    def leave(part: str, *_: Any) -> None:
        found[part] += counter.get_total_flops() - begun[part]

    for part, modules in parts.items():
        for module in modules:
            hooks.append(module.register_forward_pre_hook(functools.partial(enter, part)))
            hooks.append(module.register_forward_hook(functools.partial(leave, part)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _cpu_attention() -> dict[Any, Any]:
    """Operations of the CPU's fused attention, which the counter does not know."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    return {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep the profiler's own lines off the terminal (they come from C++)."""
    sys.stderr.flush()
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)
