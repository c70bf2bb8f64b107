"""Rank visual tokens by the text that looks at them (SparseVLM, PruneVid)."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.ops.cluster import density_peaks
from earlytom.ops.tensors import CHUNK_BYTES, full_precision, slices


def text_raters(visual: Tensor, text: Tensor, max_bytes: int = CHUNK_BYTES) -> Tensor:
    """Return the text tokens that judge the visual ones: those the video is most about.

    A text token's share is ``softmax_text(V T^T)``, averaged over the visual tokens; raters have
    more than the average share. Where none has (one text token, equal ones), all of them rate.

    Args:
        visual: ``[V, D]`` input embeddings of the visual tokens.
        text: ``[T, D]`` input embeddings of the text behind them, at least one.
        max_bytes: bound of one temporary.

    Returns:
        ``[q]`` int64 ascending, at least one of ``range(T)``; one read by the host.
    """
    total = torch.zeros(text.shape[0], device=text.device)
    step = max(1, max_bytes // (4 * (text.shape[0] + text.shape[1])))
    with full_precision(text.device):
        for a, b in slices(visual.shape[0], step):
            total += (visual[a:b].float() @ text.float().mT).softmax(1).sum(0)
    above = total > total.mean()
    return (above | ~above.any()).nonzero().flatten()


def rater_score(attention: Tensor) -> Tensor:
    """Return ``[V]``: attention ``[H, q, V]`` of the raters, averaged over heads and raters."""
    return attention.float().mean((0, 1))


def position_logits(rotary: tuple[Tensor, Tensor], queries: Tensor) -> Tensor:
    """Return the attention logits that position alone gives: rotary applied to all-one q and k.

    ``sum_d (cos_q cos_k + sin_q sin_k) / sqrt(D)``: what is left when the content of queries and
    keys is 1 everywhere.

    Args:
        rotary: cos and sin ``[n, D]`` of the columns.
        queries: ``[q]`` columns that look.

    Returns:
        ``[q, n]`` float32.
    """
    with full_precision(queries.device):
        parts = [x.float().index_select(0, queries) @ x.float().mT for x in rotary]
    return (parts[0] + parts[1]) / rotary[0].shape[-1] ** 0.5


def unbiased_score(attention: Tensor, position: Tensor, heads: int) -> Tensor:
    """Return the score ``[V]`` of visual tokens without the pull of near positions.

    Attention is divided by what position alone explains; of the heads those count whose quotients
    have the largest sum.

    Args:
        attention: ``[H, q, V]`` of the raters.
        position: ``[q, V]`` divisor.
        heads: how many heads count (at most ``H`` do).
    """
    quotient = attention.float() / position
    strongest = quotient.sum((1, 2)).sort(descending=True, stable=True).indices[:heads]
    return quotient.index_select(0, strongest).mean((0, 1))


def recycled_counts(pruned: int, share: float = 0.3, per_cluster: int = 10) -> tuple[int, int]:
    """Return how many of the ``pruned`` tokens are recycled, and into how many tokens."""
    taken = min(pruned, int(share * pruned) + 1)
    return taken, min(taken, taken // per_cluster + 1) if taken else 0


def split_kept(present: int, total: int) -> tuple[int, int]:
    """Return how many of ``present`` tokens to keep and to make of the others: ``total`` together.

    Keeping one token fewer recycles at most one token more, so the sum takes every value from
    ``recycled_counts(present)`` up. At most half of the tokens are recycled ones.

    Args:
        present: tokens present.
        total: tokens wanted, in [1, present].
    """
    low, high = total - total // 2, total
    while low < high:  # the least number of kept tokens that reaches the total
        middle = (low + high) // 2
        if middle + recycled_counts(present - middle)[1] >= total:
            high = middle
        else:
            low = middle + 1
    return low, total - low


def recycle(
    states: Tensor, score: Tensor, taken: int, count: int, neighbours: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Make ``count`` tokens of the ``taken`` best of the pruned ones.

    Density peaks (:func:`earlytom.ops.cluster.density_peaks`), every cluster becoming its plain
    mean.

    Args:
        states: ``[P, D]`` pruned tokens.
        score: ``[P]``.
        taken: how many are recycled, in [1, P]; the others are gone.
        count: clusters, in [1, taken].
        neighbours: neighbours of the density estimate; None is ``count``, as released.

    Returns:
        ``[taken]`` the recycled tokens from the highest score down, ``[count]`` which tokens of
        ``states`` are the centres, and ``[count, D]`` the means in the dtype of ``states``, from
        the highest density score down.
    """
    order = score.sort(descending=True, stable=True).indices[:taken]
    rows = states.index_select(0, order)
    near = min(taken, count if neighbours is None else neighbours)
    clusters = density_peaks(rows, [taken], [count], [near])
    means, _ = clusters.means(rows)
    return order, order.index_select(0, clusters.centre), means.to(states.dtype)


def best_per_group(score: Tensor, group: Tensor, share: float, total: int | None) -> Tensor:
    """Mark the tokens of largest score in every group; no number goes to the host.

    Args:
        score: ``[V]``; ties go to the lowest index.
        group: ``[V]`` int64, any numbers.
        share: (``total`` None) every group keeps ``int(share * size)``, possibly none.
        total: tokens kept in all, shared out over the groups in proportion to their sizes.

    Returns:
        ``[V]`` bool.
    """
    order = score.sort(descending=True, stable=True).indices
    order = order[group.index_select(0, order).sort(stable=True).indices]
    sorted_group = group.index_select(0, order)
    place = torch.arange(order.numel(), device=order.device)
    starts = torch.ones_like(place, dtype=torch.bool)
    starts[1:] = sorted_group[1:] != sorted_group[:-1]
    first = place.masked_fill(~starts, 0).cummax(0).values
    ends = torch.cat([starts[1:], starts[:1]])  # the last of every group
    last = place.masked_fill(~ends, place.numel()).flip(0).cummin(0).values.flip(0)
    if total is None:
        quota = ((last + 1 - first).double() * share).long()
    else:
        quota = (last + 1) * total // place.numel() - first * total // place.numel()
    return torch.zeros_like(starts).index_copy(0, order, place - first < quota)
