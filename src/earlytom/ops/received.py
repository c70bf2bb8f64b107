"""Attention received per token without ever storing an attention map."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom import kernels
from earlytom.ops.tensors import CHUNK_BYTES, full_precision, slices

_CACHED = 2 << 20


def received_attention(
    query: Tensor,
    key: Tensor,
    scale: float,
    mask: Tensor | None = None,
    max_bytes: int | None = None,
) -> Tensor:
    """Return ``a[b, j] = mean over heads and queries of softmax(scale Q K^T + mask)[b, h, i, j]``.

    Args:
        query: ``[B, H, Q, E]``, after rotary embedding and normalisation if the model has them.
        key: ``[B, H, S, E]``, or fewer heads that divide ``H`` (grouped-query attention).
        scale: factor of the logits.
        mask: None, or broadcastable to ``[B, H, Q, S]``: bool (True = attend) or additive.
        max_bytes: no temporary of queries, logits or probabilities is larger than this (one query
            of all heads, ``4 H S`` bytes, is the least). ``[B, H, S, S]`` is never stored. None:
            what stays in the cache of a CPU, more elsewhere.

    Returns:
        ``[B, S]`` float32; without a mask every row sums to 1. Softmax and sums run in float32.
    """
    batch, heads, n_query, width = query.shape
    size = key.shape[2]
    fits = mask is None and query.dtype == key.dtype and width <= kernels.MAX_HEAD_DIM
    if fits and kernels.use(query, key):
        from earlytom.kernels import received

        return received.received_attention(query, key, scale)
    if max_bytes is None:
        max_bytes = _CACHED if query.device.type == "cpu" else CHUNK_BYTES
    if key.shape[1] != heads:
        key = key.repeat_interleave(heads // key.shape[1], dim=1)
    if mask is not None and mask.dtype == torch.bool:
        least = torch.finfo(torch.float32).min
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, least)
    per_query = heads * max(size, width) * 4
    at_once = max(1, max_bytes // (per_query * n_query))
    queries = n_query if per_query * n_query <= max_bytes else max(1, max_bytes // per_query)
    out = torch.zeros(batch, size, dtype=torch.float32, device=query.device)
    with full_precision(query.device):
        for b0, b1 in slices(batch, at_once):
            k = key[b0:b1].float().transpose(-1, -2)
            for q0, q1 in slices(n_query, queries):
                logits = (query[b0:b1, :, q0:q1].float() * scale) @ k
                if mask is not None:
                    logits += _cut(mask, b0, b1, q0, q1)
                out[b0:b1] += torch.softmax(logits, dim=-1).sum(dim=(1, 2))
    return out / (heads * n_query)


def _cut(mask: Tensor, b0: int, b1: int, q0: int, q1: int) -> Tensor:
    """Return the part of a broadcastable mask that belongs to some batch rows and queries."""
    mask = mask.view((1,) * (4 - mask.dim()) + mask.shape)
    rows = mask if mask.shape[0] == 1 else mask[b0:b1]
    return rows if rows.shape[2] == 1 else rows[:, :, q0:q1]
