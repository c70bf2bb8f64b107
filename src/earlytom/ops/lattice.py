"""Evenly spaced places of a grid, and coarser grids: plain integers on the host."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np

from earlytom.ops.budget import spread

_LARGEST_STRETCH = 2
_RATIO = 1.22074408460575947536  # real root of x^4 = x + 1: Roberts' sequence in three dimensions


def places(n: int, count: int) -> list[int]:
    """Return ``count`` of ``range(n)``, evenly spaced: ``floor((i + 1/2) n / count)``."""
    return [(2 * i + 1) * n // (2 * count) for i in range(count)]


def lattice(grid: tuple[int, int], count: int) -> list[int]:
    """Return ``count`` patches of a grid, evenly spaced in both directions.

    Rows are about as far apart as the patches in them; rows that cannot all hold the same number
    differ by one patch.

    Args:
        grid: (height, width).
        count: in [0, height * width].

    Returns:
        Ascending raster indices.
    """
    height, width = grid
    if count == 0:
        return []
    rows = round(math.sqrt(count * height / width))
    rows = min(max(rows, -(-count // width), 1), height, count)
    per_row = spread(count, rows)
    return [
        y * width + x
        for y, n in zip(places(height, rows), per_row, strict=True)
        for x in places(width, n)
    ]


@lru_cache(maxsize=32)
def video_lattice(n_frames: int, grid: tuple[int, int], count: int) -> tuple[int, ...]:
    """Return ``count`` cells of a video, evenly spread over time, height and width.

    The first ``count`` different cells that a low-discrepancy sequence visits (Roberts, 2018: the
    ``d``-dimensional golden ratio), so fewer cells are always among more.

    Args:
        n_frames: frames ``T``.
        grid: (height, width) of a frame.
        count: in [0, T * height * width].

    Returns:
        Ascending indices into ``T * height * width``.
    """
    shape = (n_frames, *grid)
    total = math.prod(shape)
    tries = min(4 * count + 64, 64 * total)
    points = np.arange(1, tries + 1)[:, None] * _RATIO ** -np.arange(1.0, 4.0)
    cells = ((points + 0.5) % 1 * shape).astype(np.int64)
    order = np.ravel_multi_index(tuple(cells.T), shape)
    order = np.concatenate([order, np.arange(total)])  # in case the sequence missed some
    _, first = np.unique(order, return_index=True)
    return tuple(np.sort(order[np.sort(first)[:count]]).tolist())


def coarser_grid(grid: tuple[int, int], most: int) -> tuple[int, int]:
    """Return the grid of most cells, at most ``most``, that a grid can be pooled to.

    Cells may cover patches up to twice as long in one direction as in the other, unless there is
    no such grid; of equally large grids the squarest cells win.

    Args:
        grid: (height, width).
        most: at least 1.
    """
    height, width = grid

    def rank(shape: tuple[int, int]) -> tuple[bool, int, Fraction]:
        stretch = Fraction(shape[0] * width, shape[1] * height)
        stretch = max(stretch, 1 / stretch)
        return stretch <= _LARGEST_STRETCH, shape[0] * shape[1], -stretch

    shapes = ((a, min(width, most // a)) for a in range(1, min(height, most) + 1))
    return max(((a, b) for a, top in shapes for b in range(1, top + 1)), key=rank)
