"""Attention of packed queries to whole frames whose keys and values are found by index."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from earlytom.kernels.tools import attention_block, dot, head_blocks, load_rows, upcast


@triton.jit
def _packed_attention(
    query,
    key,
    value,
    source,
    starts,
    out,
    scale,
    heads,
    group,
    patches,
    q_head,
    q_row,
    q_dim,
    k_head,
    k_row,
    k_dim,
    v_head,
    v_row,
    v_dim,
    DIM: tl.constexpr,
    HEAD: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One block of queries of one frame and head; softmax statistics in float32."""
    frame = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    start = tl.load(starts + frame)
    end = tl.load(starts + frame + 1)
    row = start + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    if start + tl.program_id(0) * BLOCK >= end:
        return
    query += head * q_head
    key += head // group * k_head
    value += head // group * v_head
    source += frame * patches
    q = load_rows(query, row, row < end, q_row, q_dim, 0, HEAD, DIM)
    mixed = tl.zeros([BLOCK, HEAD], tl.float32)
    if TAIL:
        q_tail = load_rows(query, row, row < end, q_row, q_dim, HEAD, TAIL, DIM)
        mixed_tail = tl.zeros([BLOCK, TAIL], tl.float32)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, patches, BLOCK):
        patch = first + tl.arange(0, BLOCK)
        there = patch < patches
        shown = tl.load(source + patch, mask=there, other=0)
        k = load_rows(key, shown, there, k_row, k_dim, 0, HEAD, DIM)
        logits = dot(q, tl.trans(k), UPCAST)
        if TAIL:
            k_tail = load_rows(key, shown, there, k_row, k_dim, HEAD, TAIL, DIM)
            logits += dot(q_tail, tl.trans(k_tail), UPCAST)
        logits = tl.where(there[None, :], logits * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        shrink = tl.exp(top - higher)
        share = tl.exp(logits - higher[:, None])
        total = total * shrink + tl.sum(share, 1)
        v = load_rows(value, shown, there, v_row, v_dim, 0, HEAD, DIM)
        mixed = mixed * shrink[:, None] + dot(share.to(v.dtype), v, UPCAST)
        if TAIL:
            v_tail = load_rows(value, shown, there, v_row, v_dim, HEAD, TAIL, DIM)
            mixed_tail = mixed_tail * shrink[:, None] + dot(share.to(v.dtype), v_tail, UPCAST)
        top = higher
    place = out + (row * heads + head)[:, None] * DIM
    dim = tl.arange(0, HEAD)
    inside = (row < end)[:, None] & (dim < DIM)[None, :]
    mixed = mixed / total[:, None]
    tl.store(place + dim[None, :], mixed.to(out.dtype.element_ty), mask=inside)
    if TAIL:
        dim = HEAD + tl.arange(0, TAIL)
        inside = (row < end)[:, None] & (dim < DIM)[None, :]
        mixed_tail = mixed_tail / total[:, None]
        tl.store(place + dim[None, :], mixed_tail.to(out.dtype.element_ty), mask=inside)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, source: Tensor, starts: Tensor, scale: float
) -> Tensor:
    """See :func:`earlytom.ops.packed.packed_attention`.

    Args:
        query: ``[1, H, F, d]``, ``d <= MAX_HEAD_DIM``, any strides.
        key: ``[1, K, F, d]`` of the same dtype, ``K`` divides ``H``.
        value: as ``key``.
        source: ``[T, P]`` int64.
        starts: ``[T + 1]`` int64.
        scale: factor of the logits.

    Returns:
        ``[1, F, H, d]`` in the dtype of ``query``.
    """
    _, heads, fresh, dim = query.shape
    frames, patches = source.shape
    out = torch.empty(1, fresh, heads, dim, dtype=query.dtype, device=query.device)
    head, tail = head_blocks(dim)
    block = attention_block(query.dtype, dim)
    with torch.cuda.device_of(query):
        _packed_attention[(triton.cdiv(patches, block), heads, frames)](
            query,
            key,
            value,
            source.contiguous(),
            starts,
            out,
            scale,
            heads,
            heads // key.shape[1],
            patches,
            *query.stride()[1:],
            *key.stride()[1:],
            *value.stride()[1:],
            DIM=dim,
            HEAD=head,
            TAIL=tail,
            BLOCK=block,
            UPCAST=upcast(query),
        )
    return out
