"""Changed patches, lattices over a video, and farthest points from a given start."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom.ops.diversity import farthest_points, nearest_kept
from earlytom.ops.fresh import changed_patches
from earlytom.ops.lattice import video_lattice
from earlytom.ops.tensors import unit_rows


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 6),
    patches=st.integers(1, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_changed_patches_are_the_largest_changes(
    n: int, patches: int, share: float, seed: int
) -> None:
    x = torch.randn(n, patches, 4, generator=torch.Generator().manual_seed(seed))
    count = patches + int(share * (n - 1) * patches)
    marked = changed_patches(x, count)
    assert marked[0].all()
    assert int(marked.sum()) == count
    centred = x - x.mean((0, 1))
    change = 1 - torch.nn.functional.cosine_similarity(centred[1:], centred[:-1], dim=-1)
    rest = change[~marked[1:]]
    if len(rest) and bool(marked[1:].any()):
        assert float(change[marked[1:]].min()) >= float(rest.max()) - 1e-5


@given(n=st.integers(1, 9), frames=st.integers(1, 10), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_changes_do_not_depend_on_the_memory_given(n: int, frames: int, seed: int) -> None:
    x = torch.randn(n, 6, 5, generator=torch.Generator().manual_seed(seed))
    count = 6 + 3 * (n - 1)
    whole = changed_patches(x, count)
    assert torch.equal(changed_patches(x, count, max_bytes=frames * 6 * 5 * 4), whole)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 20),
    grid=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    share=st.floats(0, 1),
)
def test_video_lattice_is_exact_and_nested(n: int, grid: tuple[int, int], share: float) -> None:
    total = n * grid[0] * grid[1]
    count = int(share * total)
    cells = video_lattice(n, grid, count)
    assert len(cells) == count
    assert list(cells) == sorted(set(cells))
    assert all(0 <= c < total for c in cells)
    assert set(video_lattice(n, grid, count // 2)) <= set(cells)


def test_video_lattice_is_even_in_every_direction() -> None:
    cells = torch.tensor(video_lattice(16, (7, 7), 160))
    for axis, size in (
        (cells // 49, 16),
        (cells % 49 // 7, 7),
        (cells % 7, 7),
    ):
        counts = torch.bincount(axis, minlength=size).float()
        assert float(counts.min()) >= 0.7 * 160 / size
        assert float(counts.max()) <= 1.35 * 160 / size


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 20), m=st.integers(1, 5), more=st.integers(0, 20), seed=st.integers(0, 99))
def test_farthest_points_equal_the_plain_loop(n: int, m: int, more: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    unit = unit_rows(torch.randn(n, 5, generator=g))
    m = min(m, n)
    count = min(n, m + more)
    start = torch.randperm(n, generator=g)[:m]
    expected = start.tolist()
    gram = (unit @ unit.T).clamp(max=1)
    while len(expected) < count:
        nearest = gram[expected].amax(0)
        nearest[expected] = torch.inf
        expected.append(int(nearest.argmin()))
    for max_bytes in (1 << 20, 1):
        assert farthest_points(unit, count, start, max_bytes).tolist() == sorted(expected)


def test_identical_points_are_not_chosen_twice() -> None:
    unit = unit_rows(torch.ones(6, 3))
    assert farthest_points(unit, 6, torch.tensor([2])).tolist() == list(range(6))
    assert nearest_kept(unit, unit[:2]).tolist() == [0] * 6
