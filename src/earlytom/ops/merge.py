"""Merge the middle frames of segments (EarlyTom stage I, steps 2 and 3).

Scalar logic on host floats; the tensors are touched once, by :meth:`MergePlan.apply`.
"""

from __future__ import annotations

from collections.abc import Sequence

from earlytom.ops.plan import Groups, MergePlan
from earlytom.ops.similarity import FrameBand

Row = tuple[tuple[int, ...], tuple[float, ...]]


def plan_official(band: FrameBand, groups: Groups, average: bool = False) -> MergePlan:
    """Decide the merge of every segment as the released code does (``coarse_segment``).

    Head and tail of a segment stay. The threshold of its middle frames is the similarity of head
    and tail; a pair is weighted by ``s_j / (s_j + s_{j+1})``, both measured inside the middle. The
    last of two or more middle frames never contributes: in the last pair it has weight 0,
    unmerged it is not emitted at all.

    Args:
        band: similarities, wide enough for head and tail of the longest segment.
        groups: segments that partition the frames.
        average: replace the middle of every segment by its plain mean (``naive_mixing``).
    """
    rows: list[Row] = []
    for start, end in groups:
        middle = range(start + 1, end)
        rows.append(_copy(start))
        if len(middle) < 2:
            rows += [_copy(i) for i in middle]
        elif average:
            rows.append(_mean(middle))
        else:
            rows += _official_middle(band, middle, tau_merge=band(start, end))
        if end > start:
            rows.append(_copy(end))
    return _plan(band.n, rows, groups)


def _official_middle(band: FrameBand, middle: range, tau_merge: float) -> list[Row]:
    rows: list[Row] = []
    j, last = middle.start, middle.stop - 1
    while j < last:
        s = band(j, j + 1)
        following = band(j + 1, j + 2) if j + 1 < last else None
        if s > tau_merge and (following is None or s > following):
            # s + following == 0 divides by zero in the release
            total = s + (following or 0.0)
            w = s / total if following and total else 1.0
            rows.append(((j, j + 1), (w, 1.0 - w)))
            j += 2
        else:
            rows.append(_copy(j))
            j += 1
    return rows


def plan_paper(
    adjacent: Sequence[float], groups: Groups, tau_merge: float, average: bool = False
) -> MergePlan:
    """Decide the merge of every segment by the paper's algorithm with its holes closed.

    Head and tail are pinned and never part of a pair. Neighbours ``i, i + 1`` of the middle merge
    if ``s_i > tau_merge`` and ``s_i > s_{i+1}``, where ``s_i = Sim(F_i, F_{i+1})`` and the last
    pair uses the similarity to the tail. The pair becomes
    ``(s_i F_i + s_{i+1} F_{i+1}) / (s_i + s_{i+1})``; negative similarities count as 0, so rows
    stay convex. Frames without a partner are kept, the last one included.

    Args:
        adjacent: the ``T - 1`` similarities of neighbours.
        groups: segments that partition the frames.
        tau_merge: threshold of a pair.
        average: replace the middle of every segment by its plain mean (ablation).
    """
    rows: list[Row] = []
    for start, end in groups:
        rows.append(_copy(start))
        if average and end - start > 1:
            rows.append(_mean(range(start + 1, end)))
        else:
            rows += _paper_middle(adjacent, start + 1, end, tau_merge)
        if end > start:
            rows.append(_copy(end))
    return _plan(len(adjacent) + 1, rows, groups)


def _paper_middle(adjacent: Sequence[float], i: int, tail: int, tau_merge: float) -> list[Row]:
    rows: list[Row] = []
    while i < tail:
        if i + 1 < tail and adjacent[i] > tau_merge and adjacent[i] > adjacent[i + 1]:
            first, second = max(adjacent[i], 0.0), max(adjacent[i + 1], 0.0)
            w = first / (first + second) if first > 0 else 0.5
            rows.append(((i, i + 1), (w, 1.0 - w)))
            i += 2
        else:
            rows.append(_copy(i))
            i += 1
    return rows


def _copy(i: int) -> Row:
    return (i,), (1.0,)


def _mean(frames: range) -> Row:
    return tuple(frames), (1.0 / len(frames),) * len(frames)


def _plan(n: int, rows: list[Row], groups: Groups) -> MergePlan:
    return MergePlan(n, tuple(m for m, _ in rows), tuple(w for _, w in rows), groups)
