"""Compare tokens with those at the same place of a reference frame (DyCoke)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from earlytom.ops.tensors import CHUNK_BYTES, slices, to_device, unit_rows


def pair_cosine(
    x: Tensor, first: Sequence[int], second: Sequence[int], max_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Return the cosine of every token of frames ``first[p]`` and ``second[p]``.

    Args:
        x: ``[N, S, D]`` of any float dtype; the maths is float32.
        first: ``P`` frames.
        second: ``P`` frames.
        max_bytes: bound of the frames normalised at a time (at least two).

    Returns:
        ``[P, S]`` float32.
    """
    out = torch.zeros(len(first), x.shape[1], device=x.device)
    step = max(1, max_bytes // max(1, 8 * x.shape[1] * x.shape[2]))
    for a, b in slices(len(first), step):
        left = x.index_select(0, to_device(list(first[a:b]), x.device))
        right = x.index_select(0, to_device(list(second[a:b]), x.device))
        out[a:b] = (unit_rows(left) * unit_rows(right)).sum(-1)
    return out


def neighbour_cosine(x: Tensor) -> Tensor:
    """Return the cosine ``[N - 1, S]`` of every token and its successor in the next frame."""
    n = x.shape[0]
    return pair_cosine(x, range(n - 1), range(1, n))


def least_similar(
    x: Tensor, reference: Sequence[int | None], counts: Sequence[int], plain: Tensor | None = None
) -> Tensor:
    """Choose the tokens of every frame that differ most from its reference frame.

    Args:
        x: ``[N, S, D]``.
        reference: the frame every frame is compared with; None: it has none.
        counts: how many tokens every frame keeps, in [0, S].
        plain: ``[S]`` order in which a frame without reference keeps its tokens; None is raster
            order.

    Returns:
        Indices into ``N * S``, frame by frame, inside a frame in ascending similarity (ties:
        ascending place).
    """
    n, size = x.shape[:2]
    device = x.device
    order = torch.arange(size, device=device).repeat(n, 1)
    alone = [t for t, r in enumerate(reference) if r is None]
    if plain is not None and alone:
        order = order.index_copy(0, to_device(alone, device), plain.repeat(len(alone), 1))
    pairs = [(r, t) for t, r in enumerate(reference) if r is not None and 0 < counts[t] < size]
    if pairs:
        first, second = [r for r, _ in pairs], [t for _, t in pairs]
        found = pair_cosine(x, first, second).sort(dim=1, stable=True).indices
        order = order.index_copy(0, to_device(second, device), found)
    place = [t * size + k for t in range(n) for k in range(counts[t])]
    frame = to_device([t * size for t in range(n) for _ in range(counts[t])], device)
    return frame + order.flatten().index_select(0, to_device(place, device))


def decode_step(
    row: Tensor,
    previous: Tensor | None,
    start: int,
    length: int,
    pruned: float,
    threshold: float = 0.9,
    least: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decide which keys one decode step may read (DyCoke's dynamic pruning of the cache).

    The visual tokens are ranked by the attention of the newest token. As released, they are pruned
    only in steps whose attention differs from that of the step before; all others read everything.

    Args:
        row: ``[H, n]`` attention of the newest token one layer earlier, itself included.
        previous: ``[length]`` what the step before returned as attention, None in the first one.
        start: first visual key.
        length: number of visual keys.
        pruned: share of them to prune, in [0, 1].
        threshold: prune where the cosine with the step before is below this.
        least: visual keys that are never pruned, the best ones.

    Returns:
        ``[n]`` bool keys that may be read, ``[length]`` attention for the next step and the
        similarity, a scalar tensor (0 in the first step). Nothing is read back to the host.
    """
    attention = row.float().mean(0)[start : start + length]
    similarity = torch.zeros((), device=row.device)
    if previous is not None:
        similarity = F.cosine_similarity(attention, previous, dim=0)
    order = attention.sort(descending=True, stable=True).indices
    drop = order[max(least, int(length * (1 - pruned))) :] + start
    keep = torch.ones(row.shape[1], dtype=torch.bool, device=row.device)
    keep = torch.where(similarity < threshold, keep.index_fill(0, drop, False), keep)
    return keep, attention, similarity
