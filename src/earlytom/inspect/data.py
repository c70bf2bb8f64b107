"""What a page shows, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earlytom.inspect.signals import Scatter, Sinks
from earlytom.inspect.states import MEANING, NAMES, States, count
from earlytom.ops.plan import Groups
from earlytom.pipeline import Answer
from earlytom.report import VideoReport

Grid = tuple[int, int]


@dataclass(frozen=True)
class Curve:
    """Similarities that a decision was made by.

    Attributes:
        title: which decision.
        frames: input frame of every element compared, in order.
        similarity: of every element but the first with the one that it was compared to (its
            neighbour, or the first frame of its segment); None where nothing was compared.
        average: the moving average there, or None where the method has none.
        threshold: below this a new segment starts, or None.
        groups: inclusive segments, as elements, or ``()``.
    """

    title: str
    frames: tuple[int, ...]
    similarity: tuple[float | None, ...]
    average: tuple[float | None, ...] | None = None
    threshold: float | None = None
    groups: Groups = ()


@dataclass(frozen=True)
class MergeStep:
    """One merge point.

    Attributes:
        layer: encoder layer behind which it is, -1 for the patch embeddings.
        before: input frame of every frame in front of it.
        members: for every frame behind it, which of those it is made of.
        weights: likewise, their weights; they sum to 1.
        groups: inclusive segments of the frames in front of it, or ``()``.
    """

    layer: int
    before: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    groups: Groups = ()

    def merges(self) -> list[tuple[int, list[tuple[int, float]]]]:
        """Return (input frame kept, its members with weights) of frames made of several."""
        return [
            (self.before[m[0]], [(self.before[i], w) for i, w in zip(m, ws, strict=True)])
            for m, ws in zip(self.members, self.weights, strict=True)
            if len(m) > 1
        ]


@dataclass(frozen=True)
class CellMap:
    """States of the cells of all frames.

    Attributes:
        title: what the cells are.
        grid: (height, width) of a frame.
        states: see :mod:`earlytom.inspect.states`.
        borders: per frame, lines between cells of different tokens, or ``()``.
    """

    title: str
    grid: Grid
    states: States
    borders: tuple[list[tuple[int, int, int, int]], ...] = ()


@dataclass(frozen=True)
class MethodRun:
    """One method on the video.

    Attributes:
        label: its name on the page.
        answer: what it answered, with the timings of a call of its own behind a first one.
        report: the engine's report of the video.
        steps: its merge points.
        curves: what was compared to decide.
        maps: what became of tokens, and of patches inside the encoder; the first one is the best
            summary.
        attention: per frame left ``[height, width]`` received attention / the mean, or None.
        sinks: places of extreme attention, or None.
        scatter: features in front of the selection, or None.
        rewritten: whether kept tokens got new values (averages with others).
    """

    label: str
    answer: Answer
    report: VideoReport
    steps: tuple[MergeStep, ...]
    curves: tuple[Curve, ...]
    maps: tuple[CellMap, ...]
    attention: NDArray[np.float32] | None
    sinks: Sinks | None
    scatter: Scatter | None
    rewritten: bool

    def flow(self) -> list[tuple[str, int, int]]:
        """Return (what, without compression, with the method), from frames to the prompt."""
        a, layers = self.answer, self.answer.report
        rows = [
            ("frames into the encoder", a.frames_in, a.frames_in),
            ("frames out of the encoder", a.frames_in, a.frames_out),
            ("patches its last layer computed", a.patches_in, a.patches_out),
            ("visual tokens into the language model", a.tokens_in, a.tokens_out),
        ]
        if layers is not None and layers.layer_tokens:
            last = layers.layer_tokens[-1]
            rows.append(("visual tokens in its last layer", a.tokens_in, last))
        return [*rows, ("columns of the prompt, text included", a.prompt_in, a.prompt_out)]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        return {
            "label": self.label,
            "answer": self.answer.to_dict(),
            "flow": [{"what": w, "full": a, "method": b} for w, a, b in self.flow()],
            "merges": [
                {
                    "layer": s.layer,
                    "before": list(s.before),
                    "members": [list(m) for m in s.members],
                    "weights": [list(w) for w in s.weights],
                    "segments": [list(g) for g in s.groups],
                }
                for s in self.steps
            ],
            "similarities": [
                {
                    "title": c.title,
                    "frames": list(c.frames),
                    "similarity": list(c.similarity),
                    "average": None if c.average is None else list(c.average),
                    "threshold": c.threshold,
                    "segments": [list(g) for g in c.groups],
                }
                for c in self.curves
            ],
            "maps": [
                {
                    "title": m.title,
                    "grid": list(m.grid),
                    "states": list(m.states),
                    "counts": count(m.states),
                }
                for m in self.maps
            ],
            "attention": None if self.attention is None else _rounded(self.attention),
            "sinks": None
            if self.sinks is None
            else {"places": list(self.sinks.places), "share": self.sinks.share},
            "features": None
            if self.scatter is None
            else {
                "points": [list(p) for p in self.scatter.points],
                "kept": self.scatter.kept,
                "total": self.scatter.total,
                "explained": list(self.scatter.explained),
            },
            "values_rewritten": self.rewritten,
        }


@dataclass(frozen=True)
class Inspection:
    """A video, a question, and what some methods made of them.

    Attributes:
        source: name of the video.
        model: name of the model.
        question: what was asked.
        pictures: ``[T, H, W, 3]`` uint8, one per frame of the encoder.
        seconds: time of each of them.
        full: answer of the uncompressed model.
        runs: one entry per method.
        skipped: (label, why) of methods that do not run here.
    """

    source: str
    model: str
    question: str
    pictures: NDArray[np.uint8]
    seconds: tuple[float, ...]
    full: Answer
    runs: tuple[MethodRun, ...]
    skipped: tuple[tuple[str, str], ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the pictures as JSON-ready data."""
        return {
            "video": self.source,
            "model": self.model,
            "question": self.question,
            "seconds": list(self.seconds),
            "full": self.full.to_dict(),
            "methods": [r.to_dict() for r in self.runs],
            "skipped": [{"label": a, "reason": b} for a, b in self.skipped],
            "letters": {k: MEANING[k] for k in NAMES},
        }


def _rounded(x: NDArray[np.float32]) -> Any:
    return [[[round(float(v), 4) for v in row] for row in frame] for frame in x]
