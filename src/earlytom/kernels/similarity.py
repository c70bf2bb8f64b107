"""Cosines of frames near each other: norms and products in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from earlytom.kernels.tools import power_of_two

_DISTANCES = 4  # that a program works on at a time
_ELEMENTS = 4096  # of a partial product that a program holds in registers
_BLOCK_DIM = 128


@triton.jit
def _band_cosines(
    x,
    out,
    frames,
    patches,
    dim,
    width,
    x_frame,
    x_patch,
    x_dim,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_PATCH: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """``out[d - 1, t, s] = cos(x[t, s], x[t + d, s])``: some patches of a frame, some ``d``."""
    frame = tl.program_id(0).to(tl.int64)
    patch = tl.program_id(1) * BLOCK_PATCH + tl.arange(0, BLOCK_PATCH).to(tl.int64)
    distance = 1 + tl.program_id(2) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH).to(tl.int64)
    paired = (distance <= width) & (frame + distance < frames)
    there = paired[:, None] & (patch < patches)[None, :]
    first = x + frame * x_frame + patch[:, None] * x_patch
    second = x + (frame + distance)[:, None, None] * x_frame + patch[None, :, None] * x_patch
    own = tl.zeros([BLOCK_PATCH, BLOCK_DIM], tl.float32)
    other = tl.zeros([BLOCK_WIDTH, BLOCK_PATCH, BLOCK_DIM], tl.float32)
    product = tl.zeros([BLOCK_WIDTH, BLOCK_PATCH, BLOCK_DIM], tl.float32)
    for start in range(0, dim, BLOCK_DIM):
        column = start + tl.arange(0, BLOCK_DIM)
        inside = (patch < patches)[:, None] & (column < dim)[None, :]
        a = tl.load(first + column[None, :] * x_dim, mask=inside, other=0.0).to(tl.float32)
        inside = there[:, :, None] & (column < dim)[None, None, :]
        b = tl.load(second + column[None, None, :] * x_dim, mask=inside, other=0.0)
        b = b.to(tl.float32)
        own += a * a
        other += b * b
        product += a[None, :, :] * b
    # rows of zeros have similarity 0, as in the PyTorch form
    own_norm = tl.maximum(tl.sqrt(tl.sum(own, 1)), 1e-12)
    other_norm = tl.maximum(tl.sqrt(tl.sum(other, 2)), 1e-12)
    cosine = tl.sum(product, 2) / own_norm[None, :] / other_norm
    place = ((distance - 1)[:, None] * frames + frame) * patches + patch[None, :]
    tl.store(out + place, cosine, mask=there)


def band_cosines(x: Tensor, width: int) -> Tensor:
    """Return the cosine of every patch and itself up to ``width`` frames later.

    Args:
        x: ``[T, S, D]``, any strides.
        width: largest distance, in [1, T - 1].

    Returns:
        ``[width, T, S]`` float32, 0 where there is no such frame.
    """
    frames, patches, dim = x.shape
    out = torch.zeros(width, frames, patches, dtype=torch.float32, device=x.device)
    block_width = min(_DISTANCES, power_of_two(width))
    block_dim = min(_BLOCK_DIM, power_of_two(dim))
    block_patch = min(_ELEMENTS // (block_width * block_dim), power_of_two(patches))
    grid = (frames - 1, triton.cdiv(patches, block_patch), triton.cdiv(width, block_width))
    with torch.cuda.device_of(x):
        _band_cosines[grid](
            x,
            out,
            frames,
            patches,
            dim,
            width,
            *x.stride(),
            BLOCK_WIDTH=block_width,
            BLOCK_PATCH=block_patch,
            BLOCK_DIM=block_dim,
        )
    return out
