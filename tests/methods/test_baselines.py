"""Baselines: counts against the budget, which tokens, and pooling against torch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom.errors import ConfigError
from earlytom.methods import PoolSpace, PoolTime, RandomTokens, UniformFrames, UniformSpatial
from earlytom.methods.baselines import Baseline
from earlytom.ops.lattice import coarser_grid, lattice, places
from earlytom.ops.pooling import bins, pool_grid
from tests.methods.stage_two import FEW, budget, check_common, check_contract, choose, index_of
from tests.ops.helpers import video

ALL = [RandomTokens, UniformFrames, UniformSpatial, PoolSpace, PoolTime]
grids = st.tuples(st.integers(1, 7), st.integers(1, 7))


@pytest.mark.parametrize("cls", ALL)
def test_common(cls: type[Baseline]) -> None:
    check_common(cls(retention_ratio=0.4))


@settings(**FEW)
@given(st.sampled_from(ALL), st.integers(1, 12), grids, st.integers(1, 100), st.integers(0, 9))
def test_counts(
    cls: type[Baseline], n: int, grid: tuple[int, int], percent: int, seed: int
) -> None:
    x = video(n, grid[0] * grid[1], 3, seed=seed)
    m = cls(retention_ratio=percent / 100)
    index = check_contract(m, x, grid)
    assert index.numel() <= budget(m, x)
    chosen = choose(m, x, grid)
    if chosen is not None and chosen.features is not None:
        assert chosen.weight is not None
        assert float(chosen.weight.sum()) == x.shape[0] * x.shape[1]
        total = (chosen.features * chosen.weight[:, None]).sum(0)
        torch.testing.assert_close(total, x.sum((0, 1)), atol=1e-3, rtol=1e-4)


def test_which_budgets_are_exact() -> None:
    assert [c.__name__ for c in ALL if c.exact_budget] == ["RandomTokens", "UniformSpatial"]


def test_random_tokens_depend_on_the_seed_alone() -> None:
    x = video(8, 9)
    first = choose(RandomTokens(retention_ratio=0.3), x)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(
        index_of(first, x), index_of(choose(RandomTokens(retention_ratio=0.3), x + 1), x)
    )
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"
    other = choose(RandomTokens(retention_ratio=0.3, seed=1), x)
    assert not torch.equal(index_of(first, x), index_of(other, x))
    for seed in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="seed must be an integer >= 0"):
            RandomTokens(seed=seed)  # type: ignore[arg-type]


def test_uniform_frames_are_whole_and_evenly_spaced() -> None:
    x = video(16, 6)
    index = check_contract(UniformFrames(retention_ratio=0.3), x)  # 29 tokens
    assert (index // 6).unique().tolist() == [2, 6, 10, 14]
    assert index.numel() == 24
    index = check_contract(UniformFrames(retention_ratio=0.05), x)  # 5 tokens
    assert (index // 6).unique().tolist() == [8]
    assert index.numel() == 5


def test_uniform_spatial_keeps_the_same_lattice_in_every_frame() -> None:
    x = video(8, 196, 2)
    index = check_contract(UniformSpatial(retention_ratio=0.25), x, (14, 14)).view(8, 49)
    patches = index - torch.arange(8)[:, None] * 196
    assert (patches == patches[0]).all()
    rows, columns = patches[0] // 14, patches[0] % 14
    assert rows.unique().tolist() == columns.unique().tolist() == [1, 3, 5, 7, 9, 11, 13]
    index = check_contract(UniformSpatial(retention_ratio=0.2515), x, (14, 14))  # 3 tokens more
    assert (index // 196).bincount().tolist() == [49, 50, 49, 49, 50, 49, 50, 49]


@settings(**FEW)
@given(grids, st.data())
def test_lattice(grid: tuple[int, int], data: st.DataObject) -> None:
    height, width = grid
    count = data.draw(st.integers(0, height * width))
    found = lattice(grid, count)
    assert len(found) == count
    assert found == sorted(set(found))
    assert all(0 <= p < height * width for p in found)
    rows = [sum(p // width == y for p in found) for y in {p // width for p in found}]
    assert not rows or max(rows) - min(rows) <= 1


def test_a_wide_grid_has_few_rows() -> None:
    assert lattice((2, 8), 4) == [9, 11, 13, 15]
    assert lattice((4, 4), 4) == [5, 7, 13, 15]
    assert lattice((8, 2), 4) == [3, 7, 11, 15]
    assert places(7, 7) == list(range(7))


@pytest.mark.parametrize(
    ("grid", "most", "shape"),
    [
        ((14, 14), 49, (7, 7)),
        ((14, 14), 39, (6, 6)),
        ((14, 14), 30, (5, 6)),
        ((14, 14), 1, (1, 1)),
        ((14, 14), 195, (13, 14)),
        ((3, 3), 2, (1, 2)),
        ((1, 9), 4, (1, 4)),
        ((13, 14), 45, (5, 9)),
        ((13, 14), 44, (6, 7)),
    ],
)
def test_coarser_grid(grid: tuple[int, int], most: int, shape: tuple[int, int]) -> None:
    found = coarser_grid(grid, most)
    assert found[0] * found[1] == shape[0] * shape[1]
    assert sorted(found) == sorted(shape)
    assert found[0] * found[1] <= most


@settings(**FEW)
@given(st.integers(1, 20), st.data())
def test_bins(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, n))
    runs = bins(n, count)
    assert [i for r in runs for i in r] == list(range(n))
    assert len(runs) == count
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_pooling_is_adaptive_average_pooling_where_cells_do_not_overlap() -> None:
    x = video(6, 8 * 9, 5)
    index, values, weight = pool_grid(x, (8, 9), (2, 4, 3))
    image = x.unflatten(1, (8, 9)).permute(3, 0, 1, 2)
    expected = F.adaptive_avg_pool3d(image, (2, 4, 3)).permute(1, 2, 3, 0).flatten(0, 2)
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    assert (weight == 3 * 2 * 3).all()
    frame, row, column = index // 72, index % 72 // 9, index % 9
    assert frame.unique().tolist() == [1, 4]
    assert row.unique().tolist() == [0, 2, 4, 6]
    assert column.unique().tolist() == [1, 4, 7]


def test_pooled_shapes() -> None:
    x = video(8, 196, 2)
    assert check_contract(PoolSpace(retention_ratio=0.2), x, (14, 14)).numel() == 8 * 36
    index = check_contract(PoolTime(retention_ratio=0.3), x, (14, 14))
    assert (index // 196).bincount(minlength=8).tolist() == [0, 196, 0, 0, 0, 196, 0, 0]
    # budgets below one token a frame, and below one frame
    index = check_contract(PoolSpace(retention_ratio=0.0025), x, (14, 14))
    assert (index // 196).tolist() == [0, 2, 4, 6]
    index = check_contract(PoolTime(retention_ratio=0.0025), x, (14, 14))
    assert index.numel() == 4
