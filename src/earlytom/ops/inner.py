"""Merge visual tokens between language-model layers (EarlyTom / HoliTom stage III)."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom import kernels
from earlytom.ops.diversity import nearest_kept


def inner_merge(
    hidden: Tensor, last_row: Tensor, place: Tensor, count: int, mode: str = "sequential"
) -> tuple[Tensor, Tensor]:
    """Keep the ``count`` visual tokens the last query looks at most and merge the others into them.

    The score of a token is the mean over heads of ``last_row``. Every other visual token goes to
    the kept one with the most similar hidden state (cosine, before any update).

    Args:
        hidden: ``[n, D]`` states of one sequence in front of the layer.
        last_row: ``[H, n]`` attention of the last query one layer earlier.
        place: ``[V]`` int64 ascending columns of the visual tokens.
        count: visual tokens to keep, in [1, V].
        mode: ``sequential`` is the released update: sources in ascending order, each
            ``h <- (h + source) / 2``, in closed form (the ``p``-th source from the end weighs
            ``2^-p``, the kept token ``2^-m``); ``mean`` is the plain mean of kept and sources.

    Returns:
        ``[m]`` int64 ascending columns that stay (text and kept) and ``[m, D]`` their states.

    Raises:
        ValueError: ``count`` out of range or unknown ``mode``.
    """
    n_visual = place.numel()
    if not 1 <= count <= n_visual:
        raise ValueError(f"cannot keep {count} of {n_visual} visual tokens")
    if mode not in ("sequential", "mean"):
        raise ValueError(f"mode must be sequential or mean, got {mode!r}")
    score = last_row.float().mean(dim=0).index_select(0, place)
    order = score.sort(descending=True, stable=True).indices
    kept = order[:count].sort().values
    rest = order[count:].sort().values
    visual = hidden.index_select(0, place)
    kept_states, sources = visual.index_select(0, kept), visual.index_select(0, rest)
    owner = nearest_kept(sources, kept_states)
    dropped = place.index_select(0, rest)
    n = hidden.shape[0]
    columns = torch.arange(n, device=hidden.device).index_fill(0, dropped, n)
    columns = columns.sort().values[: n - (n_visual - count)]
    order, first, members = _groups(owner, count)
    own, weight = _weights(owner.index_select(0, order), first, members, mode)
    kept_columns = place.index_select(0, kept)
    if kernels.use(hidden):
        from earlytom.kernels.inner import merge_columns

        slot = columns.new_full((n,), -1)
        slot.index_copy_(0, kept_columns, torch.arange(count, device=hidden.device))
        slot, source = slot.index_select(0, columns), dropped.index_select(0, order)
        return columns, merge_columns(hidden, columns, slot, own, first, members, source, weight)
    weight = torch.empty_like(weight).index_copy(0, order, weight)
    total = kept_states.float() * own[:, None]
    total.index_add_(0, owner, sources.float() * weight[:, None])
    updated = hidden.index_copy(0, kept_columns, total.to(hidden.dtype))
    return columns, updated.index_select(0, columns)


def _groups(owner: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return sources grouped by owner (in order), where each group begins and its size."""
    members = torch.zeros(count, dtype=torch.int64, device=owner.device)
    members.index_add_(0, owner, torch.ones_like(owner))
    return owner.sort(stable=True).indices, members.cumsum(0) - members, members


def _weights(grouped: Tensor, first: Tensor, members: Tensor, mode: str) -> tuple[Tensor, Tensor]:
    """Return the weights of the kept tokens, and of the sources whose owners are ``grouped``."""
    if mode == "mean":
        share = 1.0 / (members + 1)
        return share, share.index_select(0, grouped)
    rank = torch.arange(grouped.numel(), device=grouped.device) - first.index_select(0, grouped)
    from_end = members.index_select(0, grouped) - rank
    return torch.exp2(-members.float()), torch.exp2(-from_end.float())
