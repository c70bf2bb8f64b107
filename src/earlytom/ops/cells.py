"""Places on a frame's grid for tokens that stand for scattered sets of patches."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.ops.lattice import places
from earlytom.ops.select import mask_index
from earlytom.ops.tensors import to_device


def grid_coordinates(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return ``[height * width, 2]`` float32 (row, column) of every patch in raster order."""
    rows, columns = (torch.arange(n, device=device, dtype=torch.float32) for n in grid)
    return torch.cartesian_prod(rows, columns)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``index [T, k]`` of ``x [T, n, ...]`` frame by frame."""
    index = index.view(*index.shape, *[1] * (x.dim() - 2))
    return x.gather(1, index.expand(-1, -1, *x.shape[2:]))


def centroids(owner: Tensor, count: int, coordinates: Tensor) -> Tensor:
    """Return the mean coordinates of the patches of every token.

    Args:
        owner: ``[T, P]`` int64 token of every patch, -1 for none.
        count: tokens ``m`` per frame.
        coordinates: ``[P, 2]`` float32.

    Returns:
        ``[T, m, 2]`` float32; a token without patches gets the middle of the grid.
    """
    known = (owner >= 0).float()
    target = owner.clamp_min(0)
    patches = owner.new_zeros(owner.shape[0], count, dtype=torch.float32)
    patches = patches.scatter_add(1, target, known)
    sums = patches.new_zeros(*patches.shape, 2)
    values = known[..., None] * coordinates
    sums = sums.scatter_add(1, target[..., None].expand_as(values), values)
    means = sums / patches.clamp_min(1)[..., None]
    return torch.where(patches[..., None] > 0, means, coordinates.mean(0))


def home_patches(owner: Tensor, count: int) -> Tensor:
    """Return ``[T, m]`` int64: the first patch of every token (the last patch if it has none)."""
    t, p = owner.shape
    target = owner.masked_fill(owner < 0, count)
    patch = torch.arange(p, device=owner.device).expand(t, -1)
    first = owner.new_full((t, count + 1), p - 1)
    return first.scatter_reduce(1, target, patch, "amin")[:, :count]


def nearest_owner(owner: Tensor, count: int, coordinates: Tensor) -> Tensor:
    """Return ``owner [T, P]`` with every -1 replaced by the token nearest on the grid."""
    centre = centroids(owner, count, coordinates)
    nearest = torch.cdist(coordinates.expand(owner.shape[0], -1, -1), centre).argmin(2)
    return torch.where(owner < 0, nearest, owner)


def distinct_cells(centre: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Give every token of a frame a cell of its own, close to where it stands.

    Tokens are sorted by their nearest cell in raster order; one whose cell is taken moves to the
    next free one behind it, and the last ones move forward at the end of the grid.

    Args:
        centre: ``[T, m, 2]`` (row, column) of every token, ``m <= S``.
        rows: ``[h]`` ascending row coordinate of the cells.
        columns: ``[w]`` ascending column coordinate, ``S == h * w``.

    Returns:
        ``[T, m]`` int64 order of the tokens and ``[T, m]`` int64 cell of each in that order,
        strictly ascending in every frame.
    """
    row = torch.bucketize(centre[..., 0].contiguous(), (rows[1:] + rows[:-1]) / 2)
    column = torch.bucketize(centre[..., 1].contiguous(), (columns[1:] + columns[:-1]) / 2)
    cell, order = (row * len(columns) + column).sort(dim=1, stable=True)
    step = torch.arange(cell.shape[1], device=cell.device)
    cell = (cell - step).cummax(1).values
    # free = S - m cells may stay empty in front of any token
    return order, cell.clamp_max(len(rows) * len(columns) - cell.shape[1]) + step


def largest_tokens(size: Tensor, count: int) -> Tensor:
    """Return the ``count`` tokens that stand for most patches.

    Of equal tokens each frame loses one before another frame loses a second, and if not all frames
    lose one, those that do are evenly spaced: a video does not lose its end.

    Args:
        size: ``[T, m]`` patches that each token stands for.
        count: in [1, T * m].

    Returns:
        ``[count]`` ascending int64 index into ``T * m``.
    """
    t, m = size.shape
    gone = t * m - count
    first = places(t, min(gone, t))
    frames = to_device(first + sorted(set(range(t)) - set(first)), size.device)
    smallest = m - 1 - size.flip(1).sort(dim=1, stable=True).indices  # of equal ones the last
    order = (frames[:, None] * m + smallest.index_select(0, frames)).t().flatten()
    rank = size.flatten().index_select(0, order).sort(stable=True).indices
    keep = torch.ones(t * m, dtype=torch.bool, device=size.device)
    keep[order.index_select(0, rank[:gone])] = False
    return mask_index(keep, count)
