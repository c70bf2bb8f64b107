"""Small helpers shared by the tensor maths: host to device copies and full-precision regions."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from earlytom.errors import VideoError

CHUNK_BYTES = 64 << 20  # default bound of one temporary tensor


def to_device(values: Any, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Return nested numbers, or a host tensor, as a tensor on ``device`` without waiting for it."""
    host = torch.as_tensor(values, dtype=dtype)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Return a region in which autocast does not lower float32 products to half precision."""
    if device.type == "meta":  # shapes only
        return nullcontext()
    return torch.autocast(device_type=device.type, enabled=False)


def unit_rows(x: Tensor) -> Tensor:
    """Return ``x [..., D]`` as float32 with unit rows; zero rows stay zero (as torch's cosine)."""
    x = x.float()
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-8)


def check_finite(features: Tensor) -> None:
    """Raise VideoError if the features ``[frames, ...]`` of a video hold NaN or infinite values.

    One number goes to the host.
    """
    ends = torch.stack(torch.aminmax(features.detach()))  # NaN comes through
    if not bool(torch.isfinite(ends).all()):
        raise not_finite(features.shape[0])


def not_finite(n_frames: int) -> VideoError:
    """Return the error for NaN or infinite features of a video."""
    return VideoError(
        f"the visual features of a video of {n_frames} frames contain NaN or infinite values; "
        "check the video and the model's dtype"
    )


def exact(share: float) -> Fraction:
    """Return the decimal number a user wrote as an exact fraction: 0.1 is 1/10."""
    return Fraction(str(share))


def ceil_div(a: int, b: int) -> int:
    """Return ``ceil(a / b)`` in integers."""
    return -(-a // b)


def slices(n: int, step: int) -> Iterable[tuple[int, int]]:
    """Yield ``(start, end)`` of consecutive pieces of ``range(n)``, at most ``step`` long."""
    for start in range(0, n, step):
        yield start, min(start + step, n)
