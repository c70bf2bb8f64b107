"""Farthest-point selection: the whole loop in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from earlytom.kernels.tools import power_of_two


@triton.jit
def _farthest_points(table, nearest, chosen, n, start, count, BLOCK: tl.constexpr):
    """One program: points ``chosen[start:count]``, each the least similar to all before it."""
    place = tl.arange(0, BLOCK)
    inside = place < n
    similar = tl.load(nearest + place, mask=inside, other=float("inf"))
    for i in range(start, count):
        point = tl.minimum(tl.argmin(similar, 0), n - 1).to(tl.int64)
        tl.store(chosen + i, point)
        row = tl.load(table + point * n + place, mask=inside, other=float("inf"))
        similar = tl.maximum(similar, row)


def farthest_points(table: Tensor, nearest: Tensor, start: Tensor, count: int) -> Tensor:
    """Add to ``start`` the points whose largest similarity to those chosen is smallest.

    Args:
        table: ``[n, n]`` float32 similarities, contiguous, infinity on the diagonal;
            ``n <= MAX_POINTS``.
        nearest: ``[n]`` float32 largest similarity to the points of ``start``, infinity for those.
        start: ``[m]`` int64.
        count: points to end with.

    Returns:
        ``[count]`` int64 in the order of choice; ties went to the lowest index.
    """
    n = table.shape[0]
    chosen = torch.cat([start, start[:1].expand(count - start.numel())])
    block = power_of_two(n)
    with torch.cuda.device_of(table):
        _farthest_points[(1,)](
            table,
            nearest,
            chosen,
            n,
            start.numel(),
            count,
            BLOCK=block,
            num_warps=min(16, max(4, block // 256)),
        )
    return chosen
