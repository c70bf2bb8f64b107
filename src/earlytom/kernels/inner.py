"""Columns that stay inside the language model, with those that go merged into them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from earlytom.kernels.tools import power_of_two

_BLOCK = 256


@triton.jit
def _merge_columns(
    hidden,
    column,
    slot,
    own,
    first,
    members,
    source,
    weight,
    out,
    dim,
    h_row,
    h_dim,
    BLOCK: tl.constexpr,
):
    """One block of one output row: a copy, or a weighted sum over the sources of its slot."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < dim
    hidden += place * h_dim
    value = tl.load(hidden + tl.load(column + row) * h_row, mask=inside)
    kept = tl.load(slot + row)
    if kept >= 0:
        total = value.to(tl.float32) * tl.load(own + kept)
        start = tl.load(first + kept)
        for i in range(start, start + tl.load(members + kept)):
            more = tl.load(hidden + tl.load(source + i) * h_row, mask=inside)
            total += more.to(tl.float32) * tl.load(weight + i)
        value = total.to(hidden.dtype.element_ty)
    tl.store(out + row * dim + place, value, mask=inside)


def merge_columns(
    hidden: Tensor,
    column: Tensor,
    slot: Tensor,
    own: Tensor,
    first: Tensor,
    members: Tensor,
    source: Tensor,
    weight: Tensor,
) -> Tensor:
    """Return the rows ``column`` of ``hidden``, those of kept tokens with their sources merged in.

    Sources are added in their order: the result does not depend on chance, as atomic sums do.

    Args:
        hidden: ``[n, D]``, any strides.
        column: ``[m]`` int64 rows that stay.
        slot: ``[m]`` int64 kept token of every row that stays, -1 for a plain copy.
        own: ``[k]`` float32 weight of every kept token.
        first: ``[k]`` int64 where its sources begin.
        members: ``[k]`` int64 how many there are.
        source: ``[s]`` int64 rows of the sources, grouped by kept token.
        weight: ``[s]`` float32 their weights.

    Returns:
        ``[m, D]`` in the dtype of ``hidden``; sums in float32, copies bit-equal.
    """
    dim = hidden.shape[1]
    out = torch.empty(column.numel(), dim, dtype=hidden.dtype, device=hidden.device)
    block = min(_BLOCK, power_of_two(dim))
    with torch.cuda.device_of(hidden):
        _merge_columns[(column.numel(), triton.cdiv(dim, block))](
            hidden,
            column,
            slot,
            own,
            first,
            members,
            source,
            weight,
            out,
            dim,
            *hidden.stride(),
            BLOCK=block,
        )
    return out
