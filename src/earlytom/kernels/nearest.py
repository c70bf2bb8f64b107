"""The most similar of some rows for every row of others, without the table of similarities."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from earlytom.kernels.tools import dot, power_of_two, upcast

_BLOCK = 64
_BLOCK_DIM = 64


@triton.jit
def _nearest(
    others,
    kept,
    norm,
    out,
    n_other,
    n_kept,
    dim,
    o_row,
    o_dim,
    k_row,
    k_dim,
    BLOCK_OTHER: tl.constexpr,
    BLOCK_KEPT: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """``out[i] = argmax_j others[i] kept[j] / norm[j]``, the lowest ``j`` of equal ones."""
    row = tl.program_id(0) * BLOCK_OTHER + tl.arange(0, BLOCK_OTHER).to(tl.int64)
    best = tl.full([BLOCK_OTHER], float("-inf"), tl.float32)
    winner = tl.zeros([BLOCK_OTHER], tl.int64)
    for start in range(0, n_kept, BLOCK_KEPT):
        column = start + tl.arange(0, BLOCK_KEPT).to(tl.int64)
        product = tl.zeros([BLOCK_OTHER, BLOCK_KEPT], tl.float32)
        for first in range(0, dim, BLOCK_DIM):
            place = first + tl.arange(0, BLOCK_DIM)
            inside = (row[:, None] < n_other) & (place[None, :] < dim)
            a = tl.load(
                others + row[:, None] * o_row + place[None, :] * o_dim, mask=inside, other=0.0
            )
            within = (column[None, :] < n_kept) & (place[:, None] < dim)
            b = tl.load(
                kept + column[None, :] * k_row + place[:, None] * k_dim, mask=within, other=0.0
            )
            product += dot(a, b, UPCAST)
        length = tl.load(norm + column, mask=column < n_kept, other=1.0)
        # the norm of the other row scales all its candidates alike
        score = product / length[None, :]
        score = tl.where(column[None, :] < n_kept, score, float("-inf"))
        top = tl.max(score, 1)
        winner = tl.where(top > best, start + tl.argmax(score, 1), winner)
        best = tl.maximum(best, top)
    tl.store(out + row, winner, mask=row < n_other)


def nearest_kept(others: Tensor, kept: Tensor) -> Tensor:
    """See :func:`earlytom.ops.diversity.nearest_kept`.

    Args:
        others: ``[m, D]``, any strides.
        kept: ``[k, D]`` of the same dtype.

    Returns:
        ``[m]`` int64.
    """
    n_other, dim = others.shape
    out = torch.empty(n_other, dtype=torch.int64, device=others.device)
    norm = torch.linalg.vector_norm(kept, dim=-1, dtype=torch.float32).clamp_min(1e-8)
    block = _BLOCK if others.dtype.itemsize == 2 else _BLOCK // 2
    with torch.cuda.device_of(others):
        _nearest[(triton.cdiv(n_other, block),)](
            others,
            kept,
            norm,
            out,
            n_other,
            kept.shape[0],
            dim,
            *others.stride(),
            *kept.stride(),
            BLOCK_OTHER=block,
            BLOCK_KEPT=block,
            BLOCK_DIM=min(_BLOCK_DIM, power_of_two(dim, 16)),
            UPCAST=upcast(others),
        )
    return out
