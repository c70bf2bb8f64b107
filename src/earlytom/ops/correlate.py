"""Redundancy of tokens from attention logits, and where removed ones send their content (FiCoCo).

``G = scale * mean over heads of Q K^T`` is never stored: heads are joined, so that its row and
column means and single rows are products of ``[n, heads * d]`` matrices.
"""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from earlytom.ops.tensors import full_precision


def joined_heads(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return ``[T, n, heads * d]`` float32 queries (scaled) and keys with ``G = Q K^T``.

    Args:
        query: ``[T, heads, n, d]``.
        key: ``[T, heads, n, d]``.
        scale: factor of the attention logits, usually ``d ** -0.5``.
    """
    q, k = (x.float().transpose(1, 2).flatten(2) for x in (query, key))
    return q * (scale / query.shape[1]), k


def informative(column: Tensor, row: Tensor, beta: float) -> Tensor:
    """Return ``beta u - (1 - beta) v``: small for tokens that are redundant and little looked at.

    Args:
        column: ``[T, n]`` logits that tokens receive (from a class token or all tokens).
        row: ``[T, n]`` mean logits that tokens give.
        beta: share of ``u``, the first with unit norm per frame; ``v`` is the second likewise.
    """
    return beta * F.normalize(column, dim=1) - (1 - beta) * F.normalize(row, dim=1)


def favour(score: Tensor, mask: Tensor) -> Tensor:
    """Make the marked scores more redundant: half of a positive one, twice a negative one."""
    return torch.where(mask, torch.where(score > 0, score / 2, score * 2), score)


def least_of_window(score: Tensor, window: Tensor, windows: int) -> Tensor:
    """Mark the token of smallest score in every window, the first of equal ones.

    Args:
        score: ``[T, n]``.
        window: ``[T, n]`` int64 in [0, windows), the window of every token.
        windows: how many there are; empty ones mark nothing.

    Returns:
        ``[T, n]`` bool.
    """
    frames, n = score.shape
    least = score.new_full((frames, windows), torch.inf).scatter_reduce(1, window, score, "amin")
    place = torch.arange(n, device=score.device).expand(frames, n)
    place = torch.where(score == least.gather(1, window), place, n)
    first = place.new_full((frames, windows), n).scatter_reduce(1, window, place, "amin")
    return first.gather(1, window) == torch.arange(n, device=score.device)


def targets_per_token(n: int, quantile: float) -> int:
    """Return how many of ``n`` different values lie above their ``quantile``, at least 1."""
    return max(1, n - 1 - int(Fraction(str(quantile)) * (n - 1)))


def strongest_targets(rows: Tensor, key: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` keys with the largest logits for each row, and their weights.

    Args:
        rows: ``[T, r, E]`` joined queries of the removed tokens.
        key: ``[T, m, E]`` joined keys.
        count: targets of every token, at most ``m``.

    Returns:
        ``[T, r, count]`` int64 and ``[T, r, count]`` float32, softmax probabilities that sum to 1.
    """
    with full_precision(rows.device):
        logits = rows @ key.mT
    top = logits.sort(dim=2, descending=True, stable=True)
    # the softmax over all keys, renormalised, is the softmax over these
    return top.indices[..., :count], torch.softmax(top.values[..., :count], dim=2)


def sent_weights(target: Tensor, weight: Tensor, m: int) -> Tensor:
    """Return ``[T, m, r]``: the weight of every removed token at every token that stays.

    Args:
        target: ``[T, r, c]`` int64 in [0, m).
        weight: ``[T, r, c]`` float32; equal targets of one token add up.
    """
    frames, r = target.shape[:2]
    return weight.new_zeros(frames, r, m).scatter_add(2, target, weight).mT
