"""Run one operation with its kernel and in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from unittest import mock

import torch
from hypothesis import settings
from torch import Tensor

from earlytom import kernels

T = TypeVar("T")
FEW = settings(deadline=None, max_examples=15)  # the interpreter is slow
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@contextmanager
def kernel_runs() -> Iterator[None]:
    """Run kernels in this block, and fail if none was used."""
    answers: list[bool] = []
    decide = kernels.use

    def spy(*tensors: Tensor) -> bool:
        answers.append(decide(*tensors))
        return answers[-1]

    with kernels._forced(), mock.patch.object(kernels, "use", spy):
        yield
    assert any(answers), "no kernel was used"


def both(operation: Callable[[], T]) -> tuple[T, T]:
    """Return what ``operation`` gives with its kernel and in PyTorch."""
    with kernel_runs():
        found = operation()
    with kernels.disabled():
        return found, operation()


def randn(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """Same numbers on every device."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.to(device, dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two float tensors are equal, NaN at the same places included."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and bool(torch.equal(a.isnan(), b.isnan()))
        and bool(torch.equal(a.nan_to_num(0.0), b.nan_to_num(0.0)))
    )
