"""Merged frames. Copies are bit-equal; sums differ by at most two units in the last place.

Both forms sum in float32 (a GPU may fuse product and sum) and round once to the dtype.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from earlytom import kernels
from earlytom.ops.plan import MergePlan
from tests.kernels.helpers import DTYPES, FEW, both, randn, same_bits

TOLERANCE = {torch.float32: 2.4e-7, torch.float16: 1e-3, torch.bfloat16: 7.9e-3}
PLAN = MergePlan(
    6,
    ((0, 1), (2,), (3, 4, 5)),
    ((0.25, 0.75), (1.0,), (1 / 3, 1 / 3, 1 / 3)),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 7, 150), (6, 1, 1), (6, 1030), (6,)])
def test_equals_torch(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = randn(*shape, dtype=dtype, device=device)
    found, expected = both(lambda: PLAN.apply(x))
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=TOLERANCE[dtype])
    assert same_bits(found[1], x[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_members_of_weight_zero_are_never_read(device: torch.device, dtype: torch.dtype) -> None:
    plan = MergePlan(5, ((0, 1, 2), (3, 4)), ((0.0, 0.5, 0.5), (1.0, 0.0)))
    x = randn(5, 3, 4, dtype=dtype, device=device)
    x[0], x[4] = torch.nan, torch.inf
    found, expected = both(lambda: plan.apply(x))
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=TOLERANCE[dtype])
    assert bool(found.isfinite().all())
    assert same_bits(found[1], x[3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_keep_every_bit(device: torch.device, dtype: torch.dtype) -> None:
    plan = MergePlan(4, ((0,), (2,), (3,)), ((1.0,),) * 3)
    x = randn(4, 9, dtype=dtype, device=device)
    x[2, :4] = torch.tensor([torch.nan, torch.inf, -0.0, 1e-7])
    found, expected = both(lambda: plan.apply(x))
    assert same_bits(found, expected)
    assert bool(found[1, 2].signbit())


@FEW
@given(st.integers(2, 7), st.integers(1, 4), st.integers(1, 40), st.integers(0, 99))
def test_any_plan(device: torch.device, frames: int, rows: int, size: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    cut = sorted(torch.randperm(frames - 1, generator=g)[: rows - 1].add(1).tolist())
    members = [tuple(range(a, b)) for a, b in zip([0, *cut], [*cut, frames], strict=True)]
    weights = [torch.rand(len(m), generator=g).add(0.1) for m in members]
    plan = MergePlan(frames, tuple(members), tuple(tuple((w / w.sum()).tolist()) for w in weights))
    assume(not plan.is_identity)
    x = randn(size, frames, dtype=torch.float32, device=device, seed=seed).t()  # not contiguous
    found, expected = both(lambda: plan.apply(x))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_the_identity_and_double_precision_run_no_kernel(device: torch.device) -> None:
    x = randn(6, 2, dtype=torch.float32, device=device)
    with kernels._forced():
        assert MergePlan.identity(6).apply(x) is x
        assert PLAN.apply(x.double()).dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_size(dtype: torch.dtype) -> None:
    plan = MergePlan(32, tuple((2 * i, 2 * i + 1) for i in range(16)), ((0.3, 0.7),) * 16)
    x = randn(32, 729, 1152, dtype=dtype, device=torch.device("cuda"))
    found, expected = both(lambda: plan.apply(x))
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=TOLERANCE[dtype])
