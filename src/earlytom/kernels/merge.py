"""Merge frames by a sparse plan: every input frame is read once, every output written once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from earlytom.kernels.tools import power_of_two
from earlytom.ops.tensors import to_device

_BLOCK = 1024


@triton.jit
def _merge_frames(x, member, weight, out, size, width, x_frame, x_element, BLOCK: tl.constexpr):
    """One block of elements of an output frame; ``member[n]`` is the count and the frames."""
    frame = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    x += place * x_element
    member += frame * (width + 1)
    count = tl.load(member)
    value = tl.load(x + tl.load(member + 1) * x_frame, mask=inside)
    if count > 1:  # a copy is not multiplied
        weight += frame * width
        total = value.to(tl.float32) * tl.load(weight)
        for k in range(1, count):
            more = tl.load(x + tl.load(member + 1 + k) * x_frame, mask=inside)
            total += more.to(tl.float32) * tl.load(weight + k)
        value = total.to(x.dtype.element_ty)
    tl.store(out + frame * size + place, value, mask=inside)


def merge_frames(
    x: Tensor, members: Sequence[Sequence[int]], weights: Sequence[Sequence[float]]
) -> Tensor:
    """Return ``out[n] = sum_k weights[n][k] x[members[n][k]]``; a single member is copied.

    Args:
        x: ``[T, ...]``, any strides.
        members: for every output frame the input frames that count.
        weights: same shape, float32 on the device.

    Returns:
        ``[N, ...]`` in the dtype of ``x``, sums in float32.
    """
    rows = x.reshape(x.shape[0], -1)
    size, width = rows.shape[1], max(len(row) for row in members)
    table = [[len(row), *row, *[0] * (width - len(row))] for row in members]
    shares = [[*row, *[0.0] * (width - len(row))] for row in weights]
    member = to_device(table, x.device)
    weight = to_device(shares, x.device, torch.float32)
    out = torch.empty(len(members), *x.shape[1:], dtype=x.dtype, device=x.device)
    block = min(_BLOCK, power_of_two(size))
    with torch.cuda.device_of(x):
        _merge_frames[(triton.cdiv(size, block), len(members))](
            rows, member, weight, out, size, width, *rows.stride(), BLOCK=block
        )
    return out
