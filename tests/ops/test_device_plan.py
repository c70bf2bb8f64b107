"""The device form of exact budgets decides as the host form does, and never waits for the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from earlytom.ops.budget import choose_pairs, needed_width, plan_budget, plan_of_first, rounds
from earlytom.ops.device_plan import DevicePlan, FixedMerge, pairs_on_device, plan_on_device
from earlytom.ops.plan import MergePlan
from earlytom.ops.similarity import FrameBand, band_similarity, measure_frames, worst_patches
from tests.ops.helpers import video

# what makes the device wait, or has a shape that depends on values
WAITS = ("_local_scalar_dense", "nonzero", "item", "masked_select", "unique", "equal", "is_nonzero")


class Devices(TorchDispatchMode):
    """Records every operator and the devices of the tensors it met."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.add(str(func).removeprefix("aten.").partition(".")[0])
        found = tree_leaves((args, kwargs, out))
        self.devices |= {t.device.type for t in found if isinstance(t, Tensor)}
        return out


def host_plans(band: Tensor, target: int, counts: Tensor, fuse: str) -> list[MergePlan]:
    n = counts.shape[1]
    plans = []
    for rows, count in zip(band.tolist(), counts.tolist(), strict=True):
        host = FrameBand(n, tuple(tuple(r[: n - d]) for d, r in enumerate(rows, start=1)))
        plans.append(plan_budget(host, target, count, fuse))
    return plans


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


@st.composite
def bands(draw: st.DrawFn) -> tuple[Tensor, int, Tensor]:
    """Similarities of some videos, frames to keep, and what every frame stands for."""
    n = draw(st.integers(1, 64))
    target = draw(st.integers(1, n))
    videos = draw(st.integers(1, 3))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    band = torch.rand(videos, needed_width(n, target), n, generator=g) * 2 - 1
    steps = draw(st.sampled_from([None, 8, 2, 0]))  # ties: eighths, halves, all alike
    if steps is not None:
        band = (band * steps).round() / max(1, steps)
    counts = torch.randint(1, 6, (videos, n), generator=g)
    return band, target, counts


@settings(max_examples=300, deadline=None)
@given(bands(), st.sampled_from(["first", "average"]))
def test_decisions_and_weights_are_those_of_the_host_bit_for_bit(
    case: tuple[Tensor, int, Tensor], fuse: str
) -> None:
    band, target, counts = case
    n = counts.shape[1]
    plan = plan_on_device(band, target, counts, fuse)
    assert plan.first.shape == plan.counts.shape == (len(band), target)
    for v, host in enumerate(host_plans(band, target, counts, fuse)):
        first = plan.first[v].tolist()
        assert first == [m[0] for m in host.members]
        assert plan.counts[v].tolist() == [
            sum(counts[v, list(members)].tolist()) for members in host.members
        ]
        assert plan_of_first(first, counts[v].tolist(), fuse) == host
        for row, (members, weights) in enumerate(zip(host.members, host.weights, strict=True)):
            used = len(members) if fuse == "average" else 1
            assert plan.members[v, row].tolist()[:used] == list(members[:used])
            assert plan.weights[v, row].tolist()[:used] == list(weights[:used])
            assert not plan.weights[v, row, used:].any()
            assert set(plan.members[v, row, used:].tolist()) <= {members[0]}
    assert plan.members.shape[2] <= min(2 ** len(rounds(n, target)), n - target + 1)


@settings(max_examples=60, deadline=None)
@given(bands(), st.sampled_from(["first", "average"]), st.sampled_from(["float32", "bfloat16"]))
def test_merged_states_equal_those_of_the_host_plan_bit_for_bit(
    case: tuple[Tensor, int, Tensor], fuse: str, dtype: str
) -> None:
    band, target, counts = case
    g = torch.Generator().manual_seed(len(band) + target)
    x = torch.randn(*counts.shape, 2, 3, generator=g).to(getattr(torch, dtype))
    x[torch.rand(x.shape, generator=g) < 0.2] = -0.0  # adding 0.0 would make it 0.0
    merged = plan_on_device(band, target, counts, fuse).apply(x)
    assert merged.dtype == x.dtype
    for v, host in enumerate(host_plans(band, target, counts, fuse)):
        assert torch.equal(bits(merged[v]), bits(host.apply(x[v])))


def test_pairs_by_hand() -> None:
    chains = torch.tensor([[0.8, 0.9, 0.7], [1.0, 1.0, 1.0], [0.1, 0.9, 0.2]])
    assert pairs_on_device(chains, 1).tolist() == [[1], [0], [1]]
    assert pairs_on_device(chains, 2).tolist() == [[0, 2]] * 3
    # in float32 the sums with and without the first pair are equal, and the lower one would win
    close = torch.tensor([[2.0**-30, 2.0**-29, 0.0, 1.0]])
    assert pairs_on_device(close, 2).tolist() == [list(choose_pairs(close[0].tolist(), 2))]
    assert pairs_on_device(close, 2).tolist() == [[1, 3]]
    with pytest.raises(ValueError, match="room for 2"):
        pairs_on_device(chains, 3)


def test_bad_targets_are_refused() -> None:
    band, counts = torch.zeros(1, 3, 4), torch.ones(1, 4, dtype=torch.int64)
    for target, fuse in ((0, "first"), (5, "first"), (3, "mean")):
        with pytest.raises(ValueError):
            plan_on_device(band, target, counts, fuse)


@pytest.mark.parametrize("fuse", ["first", "average"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_read_no_place_outside(fuse: str, value: float) -> None:
    band = torch.full((2, 4, 9), value)
    band[1, 0, 3] = 0.5
    plan = plan_on_device(band, 2, torch.ones(2, 9, dtype=torch.int64), fuse)
    for index in (plan.first, plan.members):
        assert 0 <= int(index.min()) <= int(index.max()) < 9


@pytest.mark.parametrize("worst_share", [None, 0.4])
@pytest.mark.parametrize("target", [8, 5, 2])
def test_a_fixed_merge_measures_as_the_host_does(target: int, worst_share: float | None) -> None:
    x = torch.stack([video(9, seed=s) for s in (3, 4)])
    merge = FixedMerge(target, worst_share, "average")
    counts = torch.ones(2, 9, dtype=torch.int64)
    plan = merge.plan(x, counts, worst_patches(worst_share, x.shape[2]))
    for v in range(2):
        band = measure_frames(x[v], needed_width(9, target), worst_share)
        host = plan_budget(band, target, [1] * 9, "average")
        assert plan.first[v].tolist() == [m[0] for m in host.members]


@pytest.mark.parametrize("fuse", ["first", "average"])
@pytest.mark.parametrize("target", [63, 40, 5])
def test_nothing_waits_for_the_host(target: int, fuse: str) -> None:
    """On the meta device a tensor has no values: any look at one raises."""
    x = torch.empty(2, 64, 3, 4, device="meta")
    counts = torch.empty(2, 64, dtype=torch.int64, device="meta")
    with Devices() as seen:
        plan = FixedMerge(target, 0.5, fuse).plan(x, counts, n_worst=2)
        merged = plan.apply(x)
    assert merged.shape == (2, target, 3, 4)
    assert seen.devices == {"meta"}  # nothing was made on the host and copied either
    assert not seen.names & set(WAITS), seen.names & set(WAITS)


def test_the_watch_sees_host_reads() -> None:
    with Devices() as seen:
        float(torch.ones(2).sum())
        torch.ones(2)[torch.ones(2, dtype=torch.bool)]
    assert {"_local_scalar_dense", "nonzero"} & seen.names
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(2, device="meta").tolist()


def test_shapes_do_not_depend_on_what_the_frames_show() -> None:
    shapes = set()
    for seed in range(5):
        x = video(16, seed=seed)[None]
        band = torch.stack([band_similarity(x[0], needed_width(16, 3))])
        counts = torch.ones(1, 16, dtype=torch.int64)
        plan: DevicePlan = plan_on_device(band, 3, counts)
        shapes.add(tuple(t.shape for t in plan))
    assert len(shapes) == 1
