"""Runs methods on a video and gathers what the engine says they did."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.inspect import states
from earlytom.inspect.data import CellMap, Curve, Inspection, MergeStep, MethodRun
from earlytom.inspect.signals import find_sinks, scatter
from earlytom.method import Method
from earlytom.pipeline import Answer, VideoQA
from earlytom.report import VideoReport
from earlytom.trace import tracing
from earlytom.video import Video

Event = tuple[str, dict[str, Any]]


def inspect_video(
    qa: VideoQA,
    video: Video,
    question: str,
    methods: Mapping[str, Method],
    *,
    name: str | None = None,
    max_new_tokens: int = 64,
    advance: Callable[[str], None] = lambda label: None,
) -> Inspection:
    """Ask with the full model and with every method, and say what each of them kept.

    Every method runs twice: once watched, once timed (so that the first call warms up the second).

    Args:
        qa: the model.
        video: decoded frames.
        question: plain text.
        methods: label -> method; at least one.
        name: of the model; None: the last part of its path.
        max_new_tokens: length limit of the answers.
        advance: called with a label before each of them starts.

    Raises:
        ConfigError: no method, or the only one does not fit the model; with several, those that do
            not fit are listed in ``Inspection.skipped``.
        VideoError: the video cannot be used.
        EarlyTomError: see :meth:`VideoQA.ask`.
    """
    if not methods:
        raise ConfigError("name at least one method")
    advance("full")
    ask = functools.partial(qa.ask, video, question, max_new_tokens=max_new_tokens)
    full = _timed_again(ask(), ask)
    runs, skipped = [], []
    for label, method in methods.items():
        advance(label)
        try:
            runs.append(_run(ask, label, method))
        except (ConfigError, UnsupportedModelError) as e:
            skipped.append((label, str(e)))
    if not runs:
        raise ConfigError("; ".join(f"{label}: {why}" for label, why in skipped))
    n = runs[0].report.frames_in
    chosen = [(2 * i + 1) * len(video) // (2 * n) for i in range(n)]  # some models pair frames
    return Inspection(
        source=video.source,
        model=name or Path(str(qa.model.config.name_or_path)).name or type(qa.model).__name__,
        question=question,
        pictures=video.frames[chosen].numpy(),
        seconds=tuple(video.timestamps[chosen].tolist()),
        full=full,
        runs=tuple(runs),
        skipped=tuple(skipped),
    )


def _timed_again(first: Answer, ask: Callable[..., Answer], *args: Method) -> Answer:
    """Return an answer with the times of a second run, which warms nothing up."""
    return dataclasses.replace(first, timings=ask(*args).timings)


def _run(ask: Callable[..., Answer], label: str, method: Method) -> MethodRun:
    with tracing() as trace:
        first = ask(method)
    answer = _timed_again(first, ask, method)
    assert answer.report is not None
    return describe(label, answer, answer.report.videos[0], trace.last_call())


def describe(label: str, answer: Answer, report: VideoReport, events: list[Event]) -> MethodRun:
    """Put the report of one video and the events of its call together."""
    last = dict(events)  # the last event of every kind
    selected, placed, fresh = (last.get(k) for k in ("selected", "placed", "fresh"))
    grid = (1, report.tokens_per_frame) if selected is None else selected["grid"]
    inner = last.get("inner")
    inside = None
    if inner is not None and len(inner["frame"]) == 1:
        inside = states.cells_inside(report, inner["frame"][0], inner["patch"][0])
    maps = []
    tokens = states.token_states(report, inside)
    merged = placed or last.get("restored")
    if merged is not None:
        owner, shape = merged["owner"], merged["grid"]
        gone = None
        if placed is not None and inside is not None:
            gone = states.leaving(inside, placed["order"], placed["cell"])
        found = states.patch_states(owner, merged.get("keep"), gone)
        lines = tuple(states.borders(owner, shape))
        maps.append(CellMap("Patches in the encoder, by token", shape, found, lines))
    if placed is None:  # otherwise cells of tokens only say where these were put
        maps.insert(0, CellMap("Tokens for the language model", grid, tokens))
    if fresh is not None:
        shape = fresh["grid"] or (1, fresh["fresh"].shape[1])
        found = states.fresh_states(fresh["fresh"])
        maps.append(CellMap("Patches computed in the encoder", shape, found))
    received = report.received
    plot = None
    if selected is not None:
        kept = states.kept_cells(report) if inside is None else inside
        plot = scatter(selected["features"].flatten(0, 1), kept.flatten())
    return MethodRun(
        label=label,
        answer=answer,
        report=report,
        steps=tuple(_steps(report, events)),
        curves=tuple(_curves(report, events)),
        maps=tuple(maps),
        attention=None if received is None else _relative(received, grid),
        sinks=None if received is None else find_sinks(received),
        scatter=plot,
        rewritten=selected is not None
        and selected["chosen"] is not None
        and selected["chosen"].features is not None
        and placed is None,
    )


def _relative(received: torch.Tensor, grid: tuple[int, int]) -> NDArray[np.float32]:
    x = received.detach().float().cpu()
    x = x / x.mean(1, keepdim=True).clamp_min(1e-12)
    return x.unflatten(1, grid).numpy()


def _steps(report: VideoReport, events: list[Event]) -> list[MergeStep]:
    """Return the merge points; segments are those that the decision was made from."""
    groups = iter([_decided(part, "segments") for _, part in _points(events) if _merged(part)])
    steps, before = [], tuple(range(report.frames_in))
    for plan, layer in zip(report.plans, report.merge_layers, strict=True):
        found = next(groups, None)
        segments = plan.groups or (found["groups"] if found else ())
        steps.append(MergeStep(layer, before, plan.members, plan.weights, segments))
        before = tuple(before[m[0]] for m in plan.members)
    return steps


def _curves(report: VideoReport, events: list[Event]) -> list[Curve]:
    """Return what was compared at every merge point, and for the selection behind the encoder."""
    title = "Segments for the selection of tokens"
    points, present = _points(events), tuple(range(report.frames_in))
    if not points:
        return _curve(events, title, present)
    curves = []
    for layer, part in points:
        where = f"Merging after encoder layer {layer}" if layer >= 0 else "Merging the embeddings"
        curves += _curve(part, where, present)
        plan = _merged(part)
        if plan is not None:
            present = tuple(present[m[0]] for m in plan.members)
        curves += _curve(_after(part), title, present)
    return curves


def _curve(part: list[Event], title: str, present: tuple[int, ...]) -> list[Curve]:
    segments, similarity = _decided(part, "segments"), _decided(part, "similarity")
    if segments is not None:
        groups = segments["groups"]
        if groups[-1][1] + 1 != len(present):
            return []
        seen, average = tuple(segments["similarity"]), tuple(segments["average"])
        return [Curve(title, present, seen, average, segments["tau"], groups)]
    if similarity is not None and similarity["band"].n == len(present):
        return [Curve(title, present, similarity["band"].adjacent())]
    return []


def _points(events: list[Event]) -> list[tuple[int, list[Event]]]:
    """Split what happened into merge points: (layer, its events)."""
    parts: list[tuple[int, list[Event]]] = []
    for event in events:
        if event[0] == "point":
            parts.append((event[1]["layer"], []))
        elif parts and event[0] in ("similarity", "segments", "merged"):
            parts[-1][1].append(event)
    return parts


def _merged(part: list[Event]) -> Any:
    return next((values["plan"] for kind, values in part if kind == "merged"), None)


def _decided(part: list[Event], kind: str) -> dict[str, Any] | None:
    """Return the first event of a kind in front of the merge."""
    for found, values in part:
        if found == "merged":
            return None
        if found == kind:
            return values
    return None


def _after(part: list[Event]) -> list[Event]:
    """Return the events behind the merge, none without one."""
    index = max((i for i, (kind, _) in enumerate(part) if kind == "merged"), default=len(part))
    return part[index + 1 :]
