"""Gather rows and blank the others: NaN marks tokens that are not there, 0 is padding."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom import kernels


def gather_masked(x: Tensor, index: Tensor, mask: Tensor, fill: float = 0.0) -> Tensor:
    """Return ``out[b, i] = x[b, index[b, i]]`` where ``mask[b, i]``, else ``fill``.

    Args:
        x: ``[B, L, D]``.
        index: ``[B, M]`` int64 in [0, L), also where ``mask`` is False.
        mask: ``[B, M]`` bool.
        fill: value of the rows that are not in the mask.

    Returns:
        ``[B, M, D]`` in the dtype of ``x``; gathered rows are bit-equal.
    """
    if kernels.use(x):
        from earlytom.kernels import rows

        return rows.gather_rows(x, index, mask, fill)
    gathered = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
    return gathered.masked_fill(~mask[..., None], fill)


def place_rows(x: Tensor, target: Tensor, count: int, index: Tensor | None = None) -> Tensor:
    """Write rows of ``x`` into ``count`` blank ones: NaN, which marks what is not there.

    Args:
        x: ``[n, D]``.
        target: ``[k]`` int64, different places in [0, count).
        count: rows of the result.
        index: ``[k]`` int64, the rows of ``x`` to write; None: all of them.

    Returns:
        ``[count, D]`` in the dtype of ``x``; rows that were written are bit-equal.
    """
    if kernels.use(x):
        from earlytom.kernels import rows

        if index is None:
            index = torch.arange(x.shape[0], device=x.device)
        origin = index.new_full((count,), -1).index_copy(0, target, index)[None]
        return rows.gather_rows(x[None], origin, origin >= 0, float("nan"))[0]
    if index is not None:
        x = x.index_select(0, index)
    return x.new_full((count, x.shape[1]), float("nan")).index_copy_(0, target, x)
