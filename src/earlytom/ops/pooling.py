"""Average pooling of a video's token grid in time and space."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from earlytom.ops.tensors import ceil_div, full_precision, to_device


def bins(n: int, count: int) -> list[range]:
    """Split ``range(n)`` into ``count`` runs whose lengths differ by at most 1."""
    starts = [ceil_div(i * n, count) for i in range(count + 1)]
    return [range(a, b) for a, b in itertools.pairwise(starts)]


def pool_grid(
    features: Tensor, grid: tuple[int, int], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Average the tokens of a video over the cells of a coarser grid without overlaps.

    Args:
        features: ``[N, S, D]`` of any float dtype; the maths is float32.
        grid: (height, width), ``S == height * width``.
        shape: (frames, height, width) of the result, at most ``(N, *grid)``.

    Returns:
        ``[k]`` int64 ascending place of every cell's middle token, ``[k, D]`` means in the dtype
        given and ``[k]`` float32 number of tokens of every cell.
    """
    device = features.device
    x = features.unflatten(1, grid)  # [N, h, w, D]
    index = torch.zeros((), dtype=torch.int64, device=device)
    weight = torch.ones((), device=device)
    for axis, (n, count) in enumerate(zip(x.shape[:3], shape, strict=True)):
        cells = bins(n, count)
        size = to_device([len(c) for c in cells], device)
        middle = to_device([c[(len(c) - 1) // 2] for c in cells], device)
        index = index[..., None] * n + middle
        weight = weight[..., None] * size
        if count < n:
            owner = to_device([i for i, c in enumerate(cells) for _ in c], device)
            mean = (owner == torch.arange(count, device=device)[:, None]) / size[:, None]
            with full_precision(device):
                x = torch.tensordot(mean, x.float(), dims=([1], [axis])).movedim(0, axis)
    values = x.flatten(0, 2).to(features.dtype)
    return index.flatten(), values, weight.flatten()
