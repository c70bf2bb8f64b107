"""Timing calls of all cases in turn, so that a busy or throttled machine hits them alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from earlytom.bench.contenders import Entry, applied
from earlytom.bench.memory import forget_peak, peak_rss
from earlytom.bench.speed.counting import Counts, closed_form, count
from earlytom.bench.speed.workload import Workload
from earlytom.clock import SpanClock
from earlytom.hf.api import last_report
from earlytom.method import Method
from earlytom.pipeline.timing import StageClock, TokenClock, now
from earlytom.report import Report


@dataclass(frozen=True)
class Sample:
    """Seconds of one call (``overhead`` by span), and the peak of the process in MiB.

    Attributes:
        preprocess: raw uint8 frames to pixels on the device.
        vision: vision encoder, with everything that compression does in it.
        tokens: projector, pooling, token selection, assembly of the prompt.
        prefill: language model over the prompt.
        rest: what is left of ``ttft``.
        ttft: from pixels to the first token id on the host.
        total: from pixels to the last token.
        decode_rate: tokens per second and sequence after the first; None for a single token.
        overhead: work that the plain model does not do, by kind; part of the stages above.
        rss_mib: largest resident size of the process.
    """

    preprocess: float
    vision: float
    tokens: float
    prefill: float
    rest: float
    ttft: float
    total: float
    decode_rate: float | None
    overhead: dict[str, float]
    rss_mib: float


@dataclass
class Measured:
    """All that is known about one case."""

    case: Entry
    counts: Counts
    flops: dict[str, float]
    report: Report | None
    prompt_columns: int
    samples: list[Sample] = field(default_factory=list)


def measure(
    work: Workload,
    cases: Sequence[Entry],
    *,
    repeats: int,
    new_tokens: int,
    nvtx: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Measured]:
    """Count every case once (this warms it up), then time all cases in turn ``repeats`` times.

    The order is reversed in every second round.
    """
    total = len(cases) * (repeats + 1)
    pixels = work.pixels()
    found: list[Measured] = []
    for i, case in enumerate(cases):
        progress(f"{case.label} {case.retention_ratio:g}", i, total)
        found.append(_count(work, case, pixels, new_tokens))
    for r in range(repeats):
        for k, one in enumerate(found if r % 2 == 0 else found[::-1]):
            label = f"{one.case.label} {one.case.retention_ratio:g}"
            progress(label, len(cases) * (r + 1) + k, total)
            one.samples.append(_time(work, one.case.method, new_tokens, nvtx))
    progress("done", total, total)
    return found


def _count(work: Workload, case: Entry, pixels: torch.Tensor, new_tokens: int) -> Measured:
    method, report = case.method, None
    inputs = work.inputs(pixels)
    with applied(method, work.model), StageClock(work.model) as clock:
        counts = count(lambda: _generate(work, inputs, 1), work)
        if method is not None:
            report = last_report(work.model)
        if new_tokens > 1 and work.device.type == "cuda":
            _generate(work, inputs, new_tokens)  # kernels of the decode steps
    formula = closed_form(work, method, report)
    return Measured(case, counts, formula, report, clock.prompt_length)


def _time(work: Workload, method: Method | None, new_tokens: int, nvtx: bool) -> Sample:
    gc.collect()
    forget_peak()
    start = now(work.device)
    inputs = work.inputs(work.pixels())
    ready = now(work.device)
    with applied(method, work.model):
        spans = SpanClock(work.device, nvtx)
        tokens = TokenClock(None)
        with StageClock(work.model, nvtx) as clock, spans.on():
            begin = now(work.device)
            _generate(work, inputs, new_tokens, tokens)
            end = now(work.device)
        stages = clock.vision, clock.tokens, clock.prefill
        overhead = spans.seconds()
    ttft = tokens.times[0] - begin
    return Sample(
        preprocess=ready - start,
        vision=stages[0],
        tokens=stages[1],
        prefill=stages[2],
        rest=ttft - sum(stages),
        ttft=ttft,
        total=end - begin,
        decode_rate=tokens.rate,
        overhead=overhead,
        rss_mib=peak_rss(),
    )


@torch.inference_mode()
def _generate(
    work: Workload, inputs: dict[str, Any], new_tokens: int, streamer: TokenClock | None = None
) -> None:
    work.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,  # random weights may end a text at once
        streamer=streamer,
    )
