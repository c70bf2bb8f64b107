"""Fused GPU kernels (Triton), and the switch between them and the PyTorch form of an operation.

Operations in :mod:`earlytom.ops` ask :func:`use` and import the kernel only if it says yes; the
PyTorch form next to the call is the reference. Triton comes with CUDA builds of PyTorch and is no
dependency of this package: nothing here imports it before a tensor on a GPU asks for it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

MAX_HEAD_DIM = 256  # wider heads do not fit into the shared memory of attention kernels
MAX_POINTS = 16384  # more distances do not fit into the registers of one block of threads

_LOG = logging.getLogger(__name__)
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_OLDEST = (8, 0)  # compute capability: older GPUs have no bfloat16 products

_mode: ContextVar[str] = ContextVar("earlytom_kernels", default="gpu")


@functools.cache
def available() -> bool:
    """Return whether Triton can be imported; if not, that is logged once at debug level."""
    try:
        import triton.language  # noqa: F401
    except ImportError as error:
        _LOG.debug("no fused kernels, PyTorch operations are used: %s", error)
        return False
    return True


def use(*tensors: Tensor) -> bool:
    """Return whether a kernel should run on ``tensors``.

    It should if all of them are float32, float16 or bfloat16, not empty, on one GPU, and none needs
    a gradient (kernels have no backward), unless kernels are :func:`disabled` or
    ``torch.compile`` is tracing.
    """
    if torch.compiler.is_compiling():
        return False
    mode, device = _mode.get(), tensors[0].device
    if mode == "off" or (mode == "gpu" and device.type != "cuda"):
        return False
    if any(x.device != device or x.dtype not in _FLOATS or not x.numel() for x in tensors):
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return False
    return available() and (device.type != "cuda" or _works(device))


@contextmanager
def disabled() -> Iterator[None]:
    """Use the PyTorch form of every operation inside of this block (in this thread)."""
    with _set("off"):
        yield


@contextmanager
def _forced() -> Iterator[None]:
    """Use kernels for tensors on the CPU too; needs Triton's interpreter (for tests)."""
    with _set("all"):
        yield


@contextmanager
def _set(mode: str) -> Iterator[None]:
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


@functools.cache
def _works(device: torch.device) -> bool:
    """Whether ``device`` runs kernels: new enough, and compiler and driver at hand."""
    if torch.cuda.get_device_capability(device) < _OLDEST:
        _LOG.debug("no fused kernels on %s: it is older than capability %d.%d", device, *_OLDEST)
        return False
    from earlytom.kernels.rows import gather_rows

    index = torch.zeros(1, 1, dtype=torch.int64, device=device)
    try:
        gather_rows(torch.ones(1, 1, 1, device=device), index, index == 0, 0.0)
    except Exception as error:  # whatever it is (no C compiler, say), PyTorch can do the work
        _LOG.warning(
            "fused kernels do not work on %s, PyTorch operations are used: %s", device, error
        )
        return False
    return True
