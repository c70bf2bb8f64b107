"""EVS: golden vectors of vLLM, the exact budget, and what is kept."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom.errors import ConfigError
from earlytom.methods import EVS
from earlytom.methods.evs import kept_share
from earlytom.ops.change import change_since_last_frame
from tests import parity
from tests.methods.stage_two import (
    FEW,
    budget,
    check_common,
    check_contract,
    check_found_by_arrays,
    choose,
    index_of,
)
from tests.ops.helpers import LargestTensor, video

VECTORS = sorted((Path(__file__).parent.parent / "data").glob("evs_*.npz"))


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_vector(path: Path) -> None:
    assert parity.check_file(path)["problems"] == []


def test_vectors_are_there_and_found_by_their_arrays(tmp_path: Path) -> None:
    check_found_by_arrays("evs", 4, tmp_path)


@pytest.mark.parametrize("policy", ["exact", "official"])
def test_common(policy: str) -> None:
    check_common(EVS(policy=policy, retention_ratio=0.4))


@settings(**FEW)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 100), st.integers(0, 99))
def test_counts(n: int, size: int, percent: int, seed: int) -> None:
    x = video(n, size, 5, seed=seed)
    m = EVS(retention_ratio=percent / 100)
    index = check_contract(m, x)
    if budget(m, x) >= size:
        assert index[:size].tolist() == list(range(size)), "the first frame is complete"
    official = check_contract(EVS(policy="official", retention_ratio=percent / 100), x)
    q = (100 - percent) / 100
    assert official.numel() == max(size, int(n * size * (1 - q)))


@given(st.floats(0, 1, exclude_max=True))
def test_the_pruning_rate_survives_the_way_through_the_retention_ratio(q: float) -> None:
    if q > 0:  # a rate too small to change 1 - q keeps everything
        assert kept_share(1 - q) == 1 - q


@pytest.mark.parametrize("percent", [25, 20, 15, 10])
def test_published_budgets(percent: int) -> None:
    x = video(32, 196, 2)
    chosen = choose(EVS(policy="official", retention_ratio=percent / 100), x)
    assert index_of(chosen, x).numel() == {25: 1568, 20: 1254, 15: 940, 10: 627}[percent]


def test_what_changes_is_kept() -> None:
    x = video(1, 9, 6).repeat(5, 1, 1)
    x[2:, 4] = -x[0, 4]  # an object appears in frame 2 and stays
    x[4, 7] = -x[0, 7]
    index = check_contract(EVS(retention_ratio=0.24), x)  # 11 of 45
    assert index.tolist() == [*range(9), 2 * 9 + 4, 4 * 9 + 7]


def test_a_budget_below_one_frame_is_spread_over_it() -> None:
    x = video(40, 16, 6)
    index = check_contract(EVS(retention_ratio=0.00625), x, (4, 4))  # 4 tokens
    assert index.tolist() == [5, 7, 13, 15]


def test_change_is_the_cosine_in_bounded_memory() -> None:
    x = video(9, 6, 8)
    meter = LargestTensor()
    with meter:
        change = change_since_last_frame(x, max_bytes=6 * 8 * 4)
    assert meter.bytes <= 2 * 6 * 8 * 4
    assert change[0].isinf().all()
    expected = 1 - torch.cosine_similarity(x[1:], x[:-1], dim=-1)
    torch.testing.assert_close(change[1:], expected)
    assert torch.equal(change, change_since_last_frame(x))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="policy must be one of exact, official"):
        EVS(policy="budget")
    assert EVS().resolved_positions() == "keep"
    assert EVS(positions="renumber").resolved_positions() == "renumber"
