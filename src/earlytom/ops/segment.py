"""Cut a video into segments of similar neighbouring frames (EarlyTom stage I, step 1).

Plain host logic on the scalars of one :class:`~earlytom.ops.similarity.FrameBand`.
"""

from __future__ import annotations

from collections.abc import Sequence

from earlytom.ops.plan import Groups
from earlytom.ops.similarity import FrameBand
from earlytom.trace import note


def segment_official(band: FrameBand, tau: float, ema: float, max_window: int) -> Groups:
    """Cut as the released code does (``SigLipEncoder.compression``).

    A frame is compared with the *first* frame of its segment, the moving average starts at 1.0 in
    every segment, and a segment is closed when it would reach ``max_window`` frames: the longest
    has ``max_window - 1``.

    Args:
        band: similarities at least ``max_window - 2`` wide (or all there are).
        tau: a new segment starts where the moving average falls below this.
        ema: weight of the newest similarity in the moving average.
        max_window: the released ``M``.

    Returns:
        Inclusive ``(start, end)`` segments that partition ``range(band.n)``.
    """
    cuts, start, average = [0], 0, 1.0
    seen: list[float | None] = []
    averages: list[float | None] = []
    for i in range(1, band.n):
        full = i - start + 1 >= max_window
        if not full:
            average = ema * band(start, i) + (1 - ema) * average
        seen.append(None if full else band(start, i))
        averages.append(None if full else average)
        if full or average < tau:
            cuts.append(i)
            start, average = i, 1.0
    groups = _groups(cuts, band.n)
    note("segments", similarity=seen, average=averages, tau=tau, groups=groups)
    return groups


def segment_stream(
    adjacent: Sequence[float], tau: float, ema: float, max_window: int | None = None
) -> Groups:
    """Cut as the paper defines it: streaming segmentation over neighbouring frames.

    ``s_t = Sim(F_t, F_{t-1})``, ``e_t = ema s_t + (1 - ema) e_{t-1}``; a segment starts at ``t``
    when ``e_t < tau``. The paper leaves the start of ``e`` open: it is 1 at the start of every
    segment, as in the released code, so one cut does not cause the next.

    Args:
        adjacent: the ``T - 1`` similarities of neighbours.
        tau: threshold of the moving average.
        ema: weight of the newest similarity.
        max_window: longest segment in frames, or None for no limit.
    """
    cuts, average = [0], 1.0
    averages: list[float | None] = []
    for t, similarity in enumerate(adjacent, start=1):
        average = ema * similarity + (1 - ema) * average
        averages.append(average)
        if average < tau or (max_window is not None and t - cuts[-1] >= max_window):
            cuts.append(t)
            average = 1.0
    groups = _groups(cuts, len(adjacent) + 1)
    note("segments", similarity=list(adjacent), average=averages, tau=tau, groups=groups)
    return groups


def _groups(cuts: list[int], n: int) -> Groups:
    return tuple(zip(cuts, [c - 1 for c in cuts[1:]] + [n - 1], strict=True))


def static_frames(groups: Groups) -> list[bool]:
    """Return for every frame whether it is static: neither head nor tail of its segment."""
    return [start < i < end for start, end in groups for i in range(start, end + 1)]
