"""Merge tokens into the same place of an earlier frame, inside the language model (FrameFusion)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from earlytom.ops.tensors import unit_rows

FIRST = -2.0  # similarity of a token that has no predecessor


def time_order(stream: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
    """Order tokens by place, the tokens of a place by time.

    Args:
        stream: ``[V]`` int64 which video a token belongs to.
        patch: ``[V]`` int64 place in the frame's grid; negative: no place (newline token).

    Returns:
        ``[V]`` int64 order and ``[V]`` bool, in that order: whether a token follows one of the same
        place and video.
    """
    key = stream * (patch.max() + 2) + patch.clamp_min(-1) + 1
    key, order = key.sort(stable=True)
    follows = torch.zeros_like(key, dtype=torch.bool)
    follows[1:] = key[1:] == key[:-1]
    return order, follows & (patch.index_select(0, order) >= 0)


def similarity_in_time(rows: Tensor, follows: Tensor) -> Tensor:
    """Return the cosine ``[V]`` of every row of ``rows [V, D]`` to the one before it.

    Args:
        rows: states in the order of :func:`time_order`.
        follows: see :func:`time_order`; where False the result is ``FIRST``.
    """
    unit = unit_rows(rows)
    similar = torch.full((rows.shape[0],), FIRST, device=rows.device)
    similar[1:] = (unit[1:] * unit[:-1]).sum(-1)
    return similar.masked_fill(~follows, FIRST)


def collapse_runs(rows: Tensor, joined: Tensor) -> Tensor:
    """Average every run of joined rows into the row in front of it.

    Args:
        rows: ``[V, D]``.
        joined: ``[V]`` bool; the first row is never joined.

    Returns:
        ``[V, D]`` in the dtype of ``rows``: a row that nothing joins is copied bit for bit; rows
        that are joined themselves keep their state.
    """
    place = torch.arange(rows.shape[0], device=rows.device)
    anchor = place.masked_fill(joined, 0).cummax(0).values
    total = torch.zeros(rows.shape, device=rows.device).index_add_(0, anchor, rows.float())
    members = torch.zeros(rows.shape[0], device=rows.device)
    members.index_add_(0, anchor, torch.ones_like(members))
    mean = (total / members.clamp_min(1)[:, None]).to(rows.dtype)
    return torch.where((members > 1)[:, None], mean, rows)


def top_mask(score: Tensor, count: int) -> Tensor:
    """Mark the ``count`` largest of ``score [V]``; ties go to the lowest index."""
    chosen = score.sort(descending=True, stable=True).indices[:count]
    return torch.zeros_like(score, dtype=torch.bool).index_fill(0, chosen, True)


def allowed_sparsity(ratio: float, n_layers: int, sparsity: Sequence[float]) -> float:
    """Return the share of the tokens present that may go if nothing goes afterwards.

    With ``s_i`` the share left after step ``i`` (of ``m``) and ``s = s_m``:
    ``U = 1 - (n C - sum_i s_i) / ((n - m) s)``, 0 where the budget is larger than what is there.

    Args:
        ratio: ``C``, average share of the tokens that a layer may see.
        n_layers: ``n``.
        sparsity: share of the tokens present that every step so far removed.

    Raises:
        ValueError: the steps so far have used the budget up.
    """
    share, spent = 1.0, list[float]()
    for removed in sparsity:
        share *= 1 - removed
        spent.append(share)
    rest = ratio * n_layers - sum(spent)
    if rest < 0 or len(spent) >= n_layers:
        raise ValueError(f"{len(spent)} merging steps have used up a budget of {ratio}")
    return max(0.0, 1 - rest / ((n_layers - len(spent)) * share))
