"""Exact budgets: how many frames to keep, and which neighbours to fuse to get there."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np

from earlytom.ops.plan import MergePlan
from earlytom.ops.similarity import FrameBand

_STEPS = 16  # resolution of the schedule's frame ratio, in bits


def choose_pairs(similarity: Sequence[float], count: int) -> tuple[int, ...]:
    """Choose ``count`` disjoint neighbouring pairs of a chain with the largest total similarity.

    Dynamic programming from the right: ``best[i][j] = max(best[i+1][j], s_i + best[i+2][j-1])``.
    Of equally good choices the one with the lowest indices wins.

    Args:
        similarity: ``s_i`` of elements ``i`` and ``i + 1`` of a chain of ``len + 1`` elements.
        count: number of pairs, at most half of the elements.

    Returns:
        First element of every chosen pair, ascending.

    Raises:
        ValueError: more pairs than the chain has room for.
    """
    n = len(similarity) + 1
    if not 0 <= count <= n // 2:
        raise ValueError(f"a chain of {n} has room for {n // 2} disjoint pairs, not {count}")
    best = np.full((n + 2, count + 1), -np.inf)
    best[:, 0] = 0.0
    for i in range(n - 2, -1, -1):
        best[i] = best[i + 1]
        taken = best[i + 2, :-1] + similarity[i]
        best[i, 1:] = np.maximum(best[i, 1:], taken)
    chosen, i, left = [], 0, count
    while left:
        if similarity[i] + best[i + 2, left - 1] >= best[i + 1, left]:
            chosen.append(i)
            i, left = i + 2, left - 1
        else:
            i += 1
    return tuple(chosen)


def rounds(n: int, target: int) -> tuple[int, ...]:
    """Return how many pairs every round fuses to come from ``n`` frames to ``target``."""
    pairs = []
    while n > target:
        pairs.append(min(n // 2, n - target))
        n -= pairs[-1]
    return tuple(pairs)


def needed_width(n: int, target: int) -> int:
    """Return how wide a band :func:`plan_budget` needs: groups double at most in every round."""
    return min(n - 1, 2 ** max(0, len(rounds(n, target)) - 1)) if n > target else 0


def plan_budget(
    band: FrameBand, target: int, counts: Sequence[int], fuse: str = "average"
) -> MergePlan:
    """Fuse neighbours until exactly ``target`` frames are left.

    Every round fuses the best disjoint pairs (:func:`choose_pairs`); all rounds are decided from
    one band, because groups of frames are compared by their first members.

    Args:
        band: similarities at least ``needed_width(n, target)`` wide.
        target: frames afterwards, in [1, n].
        counts: how many input frames of the video every frame stands for.
        fuse: ``average`` weights the members by ``counts``; ``first`` copies the first member,
            the others have weight 0.

    Raises:
        ValueError: ``target`` out of range or unknown ``fuse``.
    """
    n = band.n
    check_plan(n, target, fuse)
    chain: list[tuple[int, ...]] = [(i,) for i in range(n)]
    for count in rounds(n, target):
        similarity = [band(a[0], b[0]) for a, b in pairwise(chain)]
        for i in reversed(choose_pairs(similarity, count)):
            chain[i : i + 2] = [chain[i] + chain[i + 1]]
    return plan_of_first([group[0] for group in chain], counts, fuse)


def plan_of_first(first: Sequence[int], counts: Sequence[int], fuse: str) -> MergePlan:
    """Return the plan that fuses every frame of ``first`` with all frames up to the next of them.

    Args:
        first: frames at which a group begins, ascending from 0.
        counts: see :func:`plan_budget`.
        fuse: see :func:`plan_budget`.
    """
    n = len(counts)
    members = tuple(tuple(range(a, b)) for a, b in pairwise([*first, n]))
    weights = tuple(_weights([counts[i] for i in group], fuse) for group in members)
    return MergePlan(n, members, weights)


def check_plan(n: int, target: int, fuse: str) -> None:
    """Raise ValueError unless ``n`` frames can become ``target`` and ``fuse`` is known."""
    if not 1 <= target <= n:
        raise ValueError(f"cannot make {target} frames of {n}")
    if fuse not in ("average", "first"):
        raise ValueError(f"fuse must be average or first, got {fuse!r}")


def _weights(counts: list[int], fuse: str) -> tuple[float, ...]:
    if fuse == "first":
        return (1.0,) + (0.0,) * (len(counts) - 1)
    return tuple(c / sum(counts) for c in counts)


def encoder_share(
    n_frames: int, n_layers: int, merge_layers: Sequence[int], frames: Sequence[int]
) -> Fraction:
    """Return layer-frames run / layer-frames of the full encoder.

    Args:
        n_frames: frames of the video.
        n_layers: layers of the encoder.
        merge_layers: layers after which frames are merged, ascending.
        frames: frames left after each of them.
    """
    ends = [layer + 1 for layer in merge_layers] + [n_layers]
    run = n_frames * ends[0]
    run += sum(f * (b - a) for f, a, b in zip(frames, ends, ends[1:], strict=False))
    return Fraction(run, n_frames * n_layers)


def frame_schedule(
    n_frames: int, n_layers: int, merge_layers: Sequence[int], share: Fraction, minimum: int = 1
) -> tuple[int, ...]:
    """Spread a share of the encoder's layer-frames over its merge points.

    The frames shrink by the same factor ``q`` at every merge point: ``n_i = floor(T q^i)``, at
    least ``minimum``, with the largest ``q`` (in steps of 2^-16, integer arithmetic) whose
    layer-frames fit into ``share``. If none fits, every point is at its minimum.

    Args:
        n_frames: frames ``T`` of the video.
        n_layers: layers of the encoder.
        merge_layers: layers after which frames are merged, ascending.
        share: wanted layer-frames / layer-frames of the full encoder.
        minimum: least number of frames, e.g. what the token budget needs.

    Returns:
        Frames left after every merge point, never increasing.
    """
    least = max(1, min(minimum, n_frames))

    def frames(q: int) -> tuple[int, ...]:
        points = range(1, len(merge_layers) + 1)
        return tuple(max(least, n_frames * q**i >> _STEPS * i) for i in points)

    low, high = 0, 1 << _STEPS
    while low < high:
        q = (low + high + 1) // 2
        fits = encoder_share(n_frames, n_layers, merge_layers, frames(q)) <= share
        low, high = (q, high) if fits else (low, q - 1)
    return frames(low)


def spread(total: int, n: int) -> tuple[int, ...]:
    """Split ``total`` into ``n`` integers that differ by at most 1, the larger evenly spaced."""
    return tuple((i + 1) * total // n - i * total // n for i in range(n))
