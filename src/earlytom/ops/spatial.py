"""Merge windows of neighbouring patches that are alike (MustDrop)."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.ops.grouping import Grouping, descending
from earlytom.ops.tensors import unit_rows


def window_patches(grid: tuple[int, int], window: tuple[int, int], device: torch.device) -> Tensor:
    """Return the patches ``[w, a b]`` int64 of all complete windows ``(a, b)`` in raster order.

    Rows and columns of the grid that do not fill a window belong to none.
    """
    (height, width), (a, b) = grid, window
    place = torch.arange(height * width, device=device).view(height, width)
    place = place[: height // a * a, : width // b * b]
    return place.unflatten(1, (-1, b)).unflatten(0, (-1, a)).transpose(1, 2).reshape(-1, a * b)


def window_similarity(x: Tensor, patches: Tensor) -> Tensor:
    """Return the mean cosine of all pairs of different patches in every window.

    Args:
        x: ``[T, n, D]`` of any float dtype; the maths is float32.
        patches: ``[w, k]`` of :func:`window_patches`, ``k`` at least 2.

    Returns:
        ``[T, w]`` float32.
    """
    k = patches.shape[1]
    unit = unit_rows(x)[:, patches]  # [T, w, k, D]
    pairs = unit.sum(2).square().sum(-1) - unit.square().sum((2, 3))
    return pairs / (k * (k - 1))


def match_windows(similarity: Tensor, patches: Tensor, n: int, count: int) -> Grouping:
    """Merge the ``count`` windows of largest similarity in every frame, each into its last patch.

    Output order: merged windows by descending similarity, then all other patches in raster order.

    Args:
        similarity: ``[T, w]``.
        patches: ``[w, k]`` of :func:`window_patches`.
        n: patches of the grid.
        count: windows to merge, in [0, w].
    """
    frames, k = similarity.shape[0], patches.shape[1]
    chosen = patches[descending(similarity)[:, :count]]  # [T, count, k]
    place = torch.arange(n, device=patches.device).expand(frames, n)
    rest = place.scatter(1, chosen.flatten(1), n).sort(dim=1).values[:, : n - count * k]
    slot = torch.arange(count, device=patches.device).repeat_interleave(k - 1)
    return Grouping(
        torch.cat([chosen[..., -1], rest], dim=1),
        chosen[..., :-1].flatten(1),
        slot.expand(frames, -1),
    )
