"""Attention of some patches of every frame to all of its patches (patch reuse)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from earlytom import kernels


def fuses(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Return whether :func:`packed_attention` would run as one kernel on these tensors."""
    same = query.dtype == key.dtype == value.dtype and query.shape[-1] == value.shape[-1]
    return same and query.shape[-1] <= kernels.MAX_HEAD_DIM and kernels.use(query, key, value)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, source: Tensor, starts: Tensor, scale: float
) -> Tensor:
    """Return the attention of packed queries to the patches of their own frame.

    The PyTorch form pads every frame to ``P`` queries; the kernel does not, gathers no keys and
    values, and neither of them reads anything back to the host.

    Args:
        query: ``[1, H, F, d]``, the queries of all frames, one frame after the other.
        key: ``[1, H, F, d]``, or fewer heads that divide ``H``.
        value: as ``key``.
        source: ``[T, P]`` int64, the row in ``F`` that lends its key and value to every patch.
        starts: ``[T + 1]`` int64, where the queries of every frame begin, and ``F``; a frame has
            at most ``P``.
        scale: factor of the logits.

    Returns:
        ``[1, F, H, d]`` in the dtype of ``query``; softmax statistics in float32.
    """
    if fuses(query, key, value):
        from earlytom.kernels import packed

        return packed.packed_attention(query, key, value, source, starts, scale)
    fresh, patches = query.shape[2], source.shape[1]
    if key.shape[1] != query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    padded = starts[:-1, None] + torch.arange(patches, device=source.device)
    q = query[0][:, padded.clamp_max(fresh - 1)].transpose(0, 1)
    k, v = (x[0][:, source].transpose(0, 1) for x in (key, value))
    out = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
    row = torch.arange(fresh, device=source.device)
    frame = torch.bucketize(row, starts[1:], right=True)
    return out[frame, row - starts[frame]][None]
