"""One launch of every kernel at the sizes of LLaVA-OneVision: 32 frames, 729 patches of 1152."""

from __future__ import annotations

from collections.abc import Callable

import torch

from earlytom.kernels import (
    MAX_HEAD_DIM,
    MAX_POINTS,
    farthest,
    inner,
    merge,
    nearest,
    packed,
    received,
    rows,
    similarity,
)


def received_attention(dtype: torch.dtype) -> None:
    query = torch.empty(1, 729, 16, 72, dtype=dtype).transpose(1, 2)
    received.received_attention(query, query, 0.1)
    query = torch.empty(1, 4, 400, MAX_HEAD_DIM, dtype=dtype)
    received.received_attention(query, query[:, :2], 0.1)


def gather_rows(dtype: torch.dtype) -> None:
    index = torch.zeros(2, 700, dtype=torch.int64)
    rows.gather_rows(torch.empty(2, 6500, 3584, dtype=dtype), index, index == 0, 0.0)


def band_cosines(dtype: torch.dtype) -> None:
    frames = torch.empty(32, 729, 1152, dtype=dtype)
    for width in (1, 8):
        similarity.band_cosines(frames, width)


def merge_frames(dtype: torch.dtype) -> None:
    frames = torch.empty(32, 729, 1152, dtype=dtype)
    merge.merge_frames(frames, [[0], [1, 2, 3]], [[1.0], [0.2, 0.5, 0.3]])


def nearest_kept(dtype: torch.dtype) -> None:
    tokens = torch.ones(6272, 3584, dtype=dtype)
    nearest.nearest_kept(tokens, tokens[:627])


def merge_columns(dtype: torch.dtype) -> None:
    index, weight = torch.zeros(2400, dtype=torch.int64), torch.zeros(2400)
    hidden = torch.empty(3300, 3584, dtype=dtype)
    inner.merge_columns(hidden, index, index, weight, index, index, index, weight)


def packed_attention(dtype: torch.dtype) -> None:
    for fresh, heads, dim in ((9000, 16, 72), (400, 2, MAX_HEAD_DIM)):
        query = torch.empty(1, fresh, heads, dim, dtype=dtype).transpose(1, 2)
        source, starts = torch.zeros(32, 729, dtype=torch.int64), torch.zeros(33, dtype=torch.int64)
        packed.packed_attention(query, query, query, source, starts, 0.1)


def farthest_points(dtype: torch.dtype) -> None:
    for n in (3136, 8192, MAX_POINTS):
        table = torch.empty(n, n)
        farthest.farthest_points(table, table[0], torch.zeros(1, dtype=torch.int64), 627)


def smallest(dtype: torch.dtype) -> None:
    """Sizes and strides of 1 are constants to the compiler."""
    x, index, weight = torch.ones(1, 1, 1, 1, dtype=dtype), torch.zeros(1, 1).long(), torch.ones(1)
    received.received_attention(x, x, 1.0)
    rows.gather_rows(x[0], index, index == 0, 0.0)
    similarity.band_cosines(x[0].expand(2, 1, 1), 1)
    merge.merge_frames(x[0], [[0]], [[1.0]])
    nearest.nearest_kept(x[0, 0], x[0, 0])
    place = index[0]
    inner.merge_columns(x[0, 0], place, place, weight, place, place, place, weight)
    packed.packed_attention(x, x, x, index, torch.tensor([0, 1]), 1.0)
    farthest.farthest_points(torch.ones(1, 1), weight, place, 1)


LAUNCHES: list[Callable[[torch.dtype], None]] = [
    received_attention,
    gather_rows,
    band_cosines,
    merge_frames,
    nearest_kept,
    merge_columns,
    packed_attention,
    farthest_points,
    smallest,
]
