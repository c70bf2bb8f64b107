"""Received attention in two passes over queries and keys, without a map in memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from earlytom.kernels.tools import attention_block, dot, head_blocks, load_rows, upcast


@triton.jit
def _row_log_sums(
    query,
    key,
    out,
    scale,
    heads,
    group,
    n_query,
    n_key,
    q_batch,
    q_head,
    q_row,
    q_dim,
    k_batch,
    k_head,
    k_row,
    k_dim,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """``out[b, h, i] = log sum_j exp(scale q[b, h, i] k[b, h, j])``: one block of queries."""
    blocks = tl.cdiv(n_query, BLOCK)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    query += pair // heads * q_batch + pair % heads * q_head
    key += pair // heads * k_batch + pair % heads // group * k_head
    q = load_rows(query, row, row < n_query, q_row, q_dim, 0, HEAD, DIM)
    if TAIL:
        q_tail = load_rows(query, row, row < n_query, q_row, q_dim, HEAD, TAIL, DIM)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n_key, BLOCK):
        column = start + tl.arange(0, BLOCK).to(tl.int64)
        k = load_rows(key, column, column < n_key, k_row, k_dim, 0, HEAD, DIM)
        logits = dot(q, tl.trans(k), UPCAST)
        if TAIL:
            k_tail = load_rows(key, column, column < n_key, k_row, k_dim, HEAD, TAIL, DIM)
            logits += dot(q_tail, tl.trans(k_tail), UPCAST)
        logits = tl.where(column[None, :] < n_key, logits * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        top = higher
    tl.store(out + pair * n_query + row, top + tl.log(total), mask=row < n_query)


@triton.jit
def _column_sums(
    query,
    key,
    log_sums,
    out,
    scale,
    heads,
    group,
    n_query,
    n_key,
    q_batch,
    q_head,
    q_row,
    q_dim,
    k_batch,
    k_head,
    k_row,
    k_dim,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """``out[b, h, j] = sum_i exp(scale q[b, h, i] k[b, h, j] - log_sums[b, h, i])``."""
    blocks = tl.cdiv(n_key, BLOCK)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    query += pair // heads * q_batch + pair % heads * q_head
    key += pair // heads * k_batch + pair % heads // group * k_head
    log_sums += pair * n_query
    k = tl.trans(load_rows(key, column, column < n_key, k_row, k_dim, 0, HEAD, DIM))
    if TAIL:
        k_tail = tl.trans(load_rows(key, column, column < n_key, k_row, k_dim, HEAD, TAIL, DIM))
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n_query, BLOCK):
        row = start + tl.arange(0, BLOCK).to(tl.int64)
        q = load_rows(query, row, row < n_query, q_row, q_dim, 0, HEAD, DIM)
        logits = dot(q, k, UPCAST)
        if TAIL:
            q_tail = load_rows(query, row, row < n_query, q_row, q_dim, HEAD, TAIL, DIM)
            logits += dot(q_tail, k_tail, UPCAST)
        # queries beyond the last one add exp(0 - inf) = 0
        shift = tl.load(log_sums + row, mask=row < n_query, other=float("inf"))
        total += tl.sum(tl.exp(logits * scale - shift[:, None]), 0)
    tl.store(out + pair * n_key + column, total, mask=column < n_key)


def received_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """See :func:`earlytom.ops.received.received_attention`, without mask.

    Args:
        query: ``[B, H, Q, E]``, ``E <= MAX_HEAD_DIM``, any strides.
        key: ``[B, K, S, E]`` of the same dtype, ``K`` divides ``H``.
        scale: factor of the logits.

    Returns:
        ``[B, S]`` float32. Temporaries: ``4 B H (Q + S)`` bytes.
    """
    batch, heads, n_query, dim = query.shape
    n_key = key.shape[2]
    log_sums = torch.empty(batch, heads, n_query, dtype=torch.float32, device=query.device)
    sums = torch.empty(batch, heads, n_key, dtype=torch.float32, device=query.device)
    sizes = (scale, heads, heads // key.shape[1], n_query, n_key, *query.stride(), *key.stride())
    head, tail = head_blocks(dim)
    block = attention_block(query.dtype, dim)
    options = {"DIM": dim, "HEAD": head, "TAIL": tail, "BLOCK": block, "UPCAST": upcast(query)}
    pairs = batch * heads
    with torch.cuda.device_of(query):
        grid = (pairs * triton.cdiv(n_query, block),)
        _row_log_sums[grid](query, key, log_sums, *sizes, **options)
        grid = (pairs * triton.cdiv(n_key, block),)
        _column_sums[grid](query, key, log_sums, sums, *sizes, **options)
    return sums.sum(1) / (heads * n_query)
