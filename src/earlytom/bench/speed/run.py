"""One speed benchmark from plan to result."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from earlytom.bench.environment import environment
from earlytom.bench.records import quartiles
from earlytom.bench.speed.architectures import ARCHITECTURES
from earlytom.bench.speed.cases import Schedule, cases
from earlytom.bench.speed.measure import Measured, measure
from earlytom.bench.speed.tables import SCHEMA, STAGES
from earlytom.bench.speed.workload import Workload, workload
from earlytom.checks import check_count
from earlytom.errors import ConfigError
from earlytom.files import write_text
from earlytom.pipeline.loading import pick_device, pick_dtype

_TIMES = ("preprocess", *STAGES, "ttft", "total")


@dataclass(frozen=True)
class SpeedPlan:
    """What to time.

    Attributes:
        model: checkpoint folder or Hub id, or None for ``arch``.
        arch: name of an architecture to build with random weights, or ``tiny``.
        random_weights: draw the weights of ``model`` (or ``tiny``) too; only its configuration is
            read.
        methods: labels or registered names; the full model is always timed.
        ratios: retention ratios.
        frames: frames of a video, None for the architecture's own.
        batch: sequences of a call, one video each.
        attn: attention implementation of both sides, None for the default.
        schedule: frames left in the encoder for ``earlytom``.
        device: None for CUDA where there is one.
        dtype: None for float32 on the CPU, bfloat16 elsewhere.
        repeats: timed calls of every case.
        new_tokens: length of an answer, for the decoding rate.
        nvtx: open NVTX ranges.

    Raises:
        ConfigError: a number out of range.
    """

    model: str | None = None
    arch: str = "tiny"
    random_weights: bool = False
    methods: tuple[str, ...] = ("earlytom", "afterimage")
    ratios: tuple[float, ...] = (0.25, 0.1)
    frames: int | None = None
    batch: int = 1
    attn: str | None = None
    schedule: Schedule | None = None
    device: str | None = None
    dtype: str | None = None
    repeats: int = 5
    new_tokens: int = 8
    nvtx: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "repeats", "new_tokens"):
            check_count(name, getattr(self, name))
        if self.frames is not None:
            check_count("frames", self.frames)


def run_speed(
    plan: SpeedPlan, progress: Callable[[str, int, int], None] = lambda what, done, total: None
) -> dict[str, Any]:
    """Time everything in ``plan`` and return the JSON-ready result.

    Raises:
        ConfigError: something unknown or out of range.
        EarlyTomError: the model cannot be loaded or built.
    """
    device = pick_device(plan.device)
    dtype = pick_dtype(plan.dtype or ("bfloat16" if device.type == "cuda" else None), device)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError("dtype must be float32, bfloat16 or float16 in a benchmark")
    work = workload(
        plan.model or plan.arch,
        named=plan.model is None,
        random=plan.random_weights,
        frames=plan.frames,
        batch=plan.batch,
        device=device,
        dtype=dtype,
        attn=plan.attn,
    )
    entries = cases(plan.methods, plan.ratios, work.model, work.adapter, plan.schedule)
    found = measure(
        work,
        entries,
        repeats=plan.repeats,
        new_tokens=plan.new_tokens,
        nvtx=plan.nvtx,
        progress=progress,
    )
    return result(plan, work, found)


def result(plan: SpeedPlan, work: Workload, found: Sequence[Measured]) -> dict[str, Any]:
    """Return medians with quartiles, counts, and the setting they belong to."""
    attn = str(work.model.config._attn_implementation)
    dtype = str(work.model.dtype).removeprefix("torch.")
    around = environment(torch.get_num_threads(), dtype, attn, work.device)
    full = found[0]
    return {
        "schema": SCHEMA,
        "kind": "speed",
        "model": {"name": work.name, "weights": work.weights},
        "frames": work.frames,
        "batch": len(work.raw),
        "repeats": plan.repeats,
        "new_tokens": plan.new_tokens,
        "schedule": None if plan.schedule is None else asdict(plan.schedule),
        "environment": around | {"date": datetime.datetime.now().isoformat("T", "seconds")},
        "cases": [_case(m, full, work) for m in found],
    }


def _case(m: Measured, full: Measured, work: Workload) -> dict[str, Any]:
    overhead = [sum(s.overhead.values()) for s in m.samples]
    kinds = sorted({k for s in m.samples for k in s.overhead})
    rates = [s.decode_rate for s in m.samples if s.decode_rate is not None]
    batch = len(work.raw)
    paired = list(zip(full.samples, m.samples, strict=True))
    operations = sum(m.flops.values())
    return {
        "label": m.case.label,
        "retention_ratio": m.case.retention_ratio,
        "note": m.case.note,
        "config": None if m.case.method is None else m.case.method.to_dict(),
        "frames_out": [work.steps] * batch
        if m.report is None
        else [v.frames_out for v in m.report.videos],
        "tokens": work.tokens if m.report is None else m.report.tokens_out,
        "prompt_columns": m.prompt_columns,
        "seconds": {name: quartiles([getattr(s, name) for s in m.samples]) for name in _TIMES},
        "overhead_s": quartiles(overhead),
        "overhead_parts_s": {
            k: quartiles([s.overhead.get(k, 0.0) for s in m.samples]) for k in kinds
        },
        "decode_tokens_per_s": quartiles(rates),
        "answers_per_s": quartiles([batch / (s.preprocess + s.total) for s in m.samples]),
        "ttft_speedup": quartiles([a.ttft / b.ttft for a, b in paired]),
        "vision_speedup": quartiles([a.vision / b.vision for a, b in paired]),
        "flops": m.flops | {"total": operations},
        "flops_counted": m.counts.flops,
        "flops_speedup": sum(full.flops.values()) / operations,
        "memory": {
            "allocated_mib": m.counts.allocated_mib,
            "rss_mib": max(s.rss_mib for s in m.samples),
        },
        "cuda": None
        if m.counts.launches is None
        else {"launches": m.counts.launches, "waits": m.counts.waits},
    }


def save(data: dict[str, Any], folder: Path) -> Path:
    """Write a result to ``folder/speed/NAME.json`` (beside the accuracy runs) and return the path.

    The name holds what was run and on what, so that results of several machines lie side by side.
    """
    around, schedule = data["environment"], data["schedule"]
    where = "".join(c if c.isalnum() else "-" for c in around["device"].lower())
    parts = [
        Path(data["model"]["name"]).name,
        f"{data['frames']}f",
        f"b{data['batch']}",
        where,
        around["dtype"],
        around["attention"],
    ]
    if data["model"]["weights"] == "random" and data["model"]["name"] not in ARCHITECTURES:
        parts.append("random")  # a trained model whose weights were drawn anew
    if schedule is not None:
        parts += ["schedule", *(str(n) for n in schedule["frames"])]
    path = folder / "speed" / f"{'_'.join(parts)}.json"
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
    return path
