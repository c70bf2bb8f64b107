"""What all kernels share. Only kernel files import this module: it needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def power_of_two(n: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least ``n`` and ``least``."""
    return max(least, 1 << max(0, n - 1).bit_length())


def head_blocks(dim: int) -> tuple[int, int]:
    """Return two powers of two that cover ``dim``: a head of 72 is 64 + 16, not 128 wide.

    The second one is 0 if one is enough. Products need at least 16.
    """
    whole = power_of_two(dim, 16)
    head = whole // 2
    tail = power_of_two(dim - head, 16)
    return (head, tail) if head + tail < whole else (whole, 0)


def attention_block(dtype: torch.dtype, dim: int) -> int:
    """Return queries and keys of a block, such that what is live fits into registers."""
    row = dtype.itemsize * sum(head_blocks(dim))
    return 64 if row <= 256 else 32 if row <= 512 else 16


def upcast(x: Tensor) -> bool:
    """Return whether products of ``x`` must be made in float32.

    Triton's interpreter (tensors on the CPU) keeps bfloat16 as raw bits and would multiply those.
    Products of two bfloat16 numbers are exact in float32, so the result is that of a GPU.
    """
    return x.dtype == torch.bfloat16 and not x.is_cuda


@triton.jit
def dot(a, b, UPCAST: tl.constexpr):
    """Matrix product, accumulated in float32; float32 factors are not rounded to TF32."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def load_rows(
    x, row, there, row_step, dim_step, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr
):
    """Load elements ``FIRST`` to ``FIRST + WIDTH`` of some rows; 0 beyond ``DIM`` and not there."""
    dim = FIRST + tl.arange(0, WIDTH)
    inside = there[:, None] & (dim < DIM)[None, :]
    return tl.load(x + row[:, None] * row_step + dim[None, :] * dim_step, mask=inside, other=0.0)
