"""Gather rows and blank others in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from earlytom.kernels.tools import power_of_two

_BLOCK = 1024


@triton.jit
def _gather_rows(
    x,
    index,
    mask,
    out,
    fill,
    n_row,
    dim,
    x_batch,
    x_row,
    x_dim,
    i_batch,
    i_row,
    m_batch,
    m_row,
    BLOCK: tl.constexpr,
):
    """``out[b, i] = mask[b, i] ? x[b, index[b, i]] : fill``: one block of one row."""
    row = tl.program_id(0).to(tl.int64)
    batch, place = row // n_row, row % n_row
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    keep = tl.load(mask + batch * m_batch + place * m_row)
    known = column < tl.where(keep, dim, 0)
    source = tl.load(index + batch * i_batch + place * i_row)
    values = x + batch * x_batch + source * x_row + column * x_dim
    blank = (tl.zeros([BLOCK], tl.float32) + fill).to(x.dtype.element_ty)
    value = tl.where(known, tl.load(values, mask=known), blank)
    tl.store(out + row * dim + column, value, mask=column < dim)


def gather_rows(x: Tensor, index: Tensor, mask: Tensor, fill: float) -> Tensor:
    """See :func:`earlytom.ops.rows.gather_rows`.

    Args:
        x: ``[B, L, D]``, any strides.
        index: ``[B, M]`` int64; not looked at where ``mask`` is False.
        mask: ``[B, M]`` bool.
        fill: value of rows that are not in ``mask``.

    Returns:
        ``[B, M, D]`` in the dtype of ``x``; gathered rows are bit-equal.
    """
    batch, rows = index.shape
    dim = x.shape[2]
    out = torch.empty(batch, rows, dim, dtype=x.dtype, device=x.device)
    block = min(_BLOCK, power_of_two(dim))
    with torch.cuda.device_of(x):
        _gather_rows[(batch * rows, triton.cdiv(dim, block))](
            x,
            index,
            mask,
            out,
            fill,
            rows,
            dim,
            *x.stride(),
            *index.stride(),
            *mask.stride(),
            BLOCK=block,
        )
    return out
