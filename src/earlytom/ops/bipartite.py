"""Bipartite soft matching: merge the most similar pairs between two halves of the tokens (ToMe)."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.ops.grouping import Grouping, descending, rows_at
from earlytom.ops.tensors import CHUNK_BYTES, full_precision, slices, unit_rows


def most_similar(a: Tensor, b: Tensor, max_bytes: int = CHUNK_BYTES) -> tuple[Tensor, Tensor]:
    """Return the largest dot product of every row of ``a`` with the rows of ``b``, and which one.

    Args:
        a: ``[T, p, E]`` float32.
        b: ``[T, q, E]`` float32; NaN rows are never chosen.
        max_bytes: bound of the similarities at a time; at least one frame.

    Returns:
        ``[T, p]`` float32 and ``[T, p]`` int64.
    """
    step = max(1, max_bytes // (4 * max(1, a.shape[1] * b.shape[1])))
    best, which = [], []
    with full_precision(a.device):
        for start, end in slices(a.shape[0], step):
            values, index = (a[start:end] @ b[start:end].mT).max(dim=2)
            best.append(values)
            which.append(index)
    return torch.cat(best), torch.cat(which)


def match_halves(metric: Tensor, r: int, protected: int = 0) -> Grouping:
    """Merge ``r`` tokens of even position into their most similar token of odd position.

    Bolya et al., ICLR 2023, section 3. Of the tokens at even positions those with the most similar
    partner are merged; several may share a partner. Output order: the even ones that are left
    (descending similarity; ascending position if tokens are protected), then all odd ones.

    Args:
        metric: ``[T, n, E]`` what similarity (cosine) is measured by, in any float dtype.
        r: tokens to remove, at most ``(n - protected) // 2``.
        protected: 0; 1: the token at position 0 is kept as it is (a class token); 2: that at
            position 1 (a distillation token) as well, and it stays at position 1.

    Raises:
        ValueError: ``r`` or ``protected`` out of range.
    """
    n = metric.shape[1]
    if protected not in (0, 1, 2):
        raise ValueError(f"protected must be 0, 1 or 2, got {protected}")
    if not 0 <= r <= max(0, n - protected) // 2:
        raise ValueError(f"cannot merge {r} of {n} tokens, {protected} of them protected")
    place = torch.arange(n, device=metric.device).expand(metric.shape[:2])
    if r == 0:
        return Grouping.keep(place)
    return match_edges(unit_rows(metric), place[:, ::2], place[:, 1::2], r, protected)


def match_edges(unit: Tensor, a: Tensor, b: Tensor, r: int, protected: int = 0) -> Grouping:
    """Merge the ``r`` tokens of ``a [T, p]`` with the most similar partners into ``b [T, q]``.

    Args:
        unit: ``[T, n, E]`` float32 unit rows.
        a: indices of the tokens that may be merged away, in order.
        b: indices of their partners.
        r: how many, at least 1 and at most ``p`` (less the protected one).
        protected: see :func:`match_halves`; they are ``a[:, 0]`` and ``b[:, 0]``.
    """
    hidden = 1 if protected == 2 else 0  # a distillation token takes part in nothing
    best, partner = most_similar(rows_at(unit, a), rows_at(unit, b[:, hidden:]))
    partner = partner + hidden
    if protected:
        best = best.index_fill(1, best.new_zeros(1, dtype=torch.int64), -torch.inf)
    order = descending(best)
    merged, left = order[:, :r], order[:, r:]
    if protected:
        left = left.sort(dim=1).values
    rest = a.gather(1, left)
    into = partner.gather(1, merged)
    source = a.gather(1, merged)
    if protected < 2:
        return Grouping(torch.cat([rest, b], dim=1), source, into + rest.shape[1])
    kept = torch.cat([rest[:, :1], b[:, :1], rest[:, 1:], b[:, 1:]], dim=1)
    return Grouping(kept, source, into + rest.shape[1])
