from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom.ops.cells import (
    centroids,
    distinct_cells,
    grid_coordinates,
    home_patches,
    largest_tokens,
    nearest_owner,
)

CPU = torch.device("cpu")


@st.composite
def owners(draw: st.DrawFn) -> tuple[torch.Tensor, int, tuple[int, int]]:
    grid = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    patches = grid[0] * grid[1]
    m = draw(st.integers(1, patches))
    t = draw(st.integers(1, 3))
    rows = st.lists(st.integers(-1, m - 1), min_size=patches, max_size=patches)
    return torch.tensor([draw(rows) for _ in range(t)]), m, grid


@given(owners())
def test_centroids_and_homes_equal_a_loop(case: tuple[torch.Tensor, int, tuple[int, int]]) -> None:
    owner, m, grid = case
    places = grid_coordinates(grid, CPU)
    centre, home = centroids(owner, m, places), home_patches(owner, m)
    for t, row in enumerate(owner.tolist()):
        for token in range(m):
            mine = [p for p, o in enumerate(row) if o == token]
            expected = places[mine].mean(0) if mine else places.mean(0)
            torch.testing.assert_close(centre[t, token], expected)
            assert home[t, token] == (mine[0] if mine else len(row) - 1)


@given(owners())
def test_patches_without_owner_get_the_nearest_token(
    case: tuple[torch.Tensor, int, tuple[int, int]],
) -> None:
    owner, m, grid = case
    filled = nearest_owner(owner, m, grid_coordinates(grid, CPU))
    assert torch.equal(filled[owner >= 0], owner[owner >= 0])
    assert ((filled >= 0) & (filled < m)).all()


@given(st.data())
def test_cells_are_distinct_ascending_and_exact_where_possible(data: st.DataObject) -> None:
    h, w = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    m = data.draw(st.integers(1, h * w))
    number = st.floats(-1, 6, width=32)
    points = st.lists(st.tuples(number, number), min_size=m, max_size=m)
    centre = torch.tensor(data.draw(points)).view(1, m, 2)
    rows, columns = torch.arange(h).float(), torch.arange(w).float()
    order, cell = distinct_cells(centre, rows, columns)
    assert sorted(order[0].tolist()) == list(range(m))
    places = cell[0].tolist()
    assert places == sorted(set(places))
    assert places[0] >= 0
    assert places[-1] < h * w
    middles = grid_coordinates((h, w), CPU)
    nearest = torch.cdist(centre[0], middles).argmin(1)
    if len(set(nearest.tolist())) == m:  # no two tokens want the same cell
        want = torch.cdist(centre[0, order[0]], middles).amin(1)
        got = (centre[0, order[0]] - middles[cell[0]]).norm(dim=1)
        torch.testing.assert_close(got, want)
    middle = centre.expand(1, m, 2).clone()
    middle[:] = torch.tensor([h - 1.0, w - 1.0])  # all at the last cell: they fill the end
    assert distinct_cells(middle, rows, columns)[1][0].tolist() == list(range(h * w - m, h * w))


@given(st.data())
def test_the_smallest_tokens_go_from_frames_apart(data: st.DataObject) -> None:
    t, m = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 5)))
    sizes = st.lists(st.integers(1, 4), min_size=t * m, max_size=t * m)
    size = torch.tensor(data.draw(sizes)).float().view(t, m)
    count = data.draw(st.integers(1, t * m))
    kept = largest_tokens(size, count).tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == count
    gone = sorted(set(range(t * m)) - set(kept))
    flat = size.flatten().tolist()
    assert max((flat[i] for i in gone), default=0) <= min(flat[i] for i in kept)
    equal = largest_tokens(torch.ones(t, m), count)
    left = torch.bincount(equal // m, minlength=t)
    assert left.max() - left.min() <= 1


def test_frames_that_lose_a_token_are_evenly_spaced() -> None:
    kept = largest_tokens(torch.ones(8, 2), 13).tolist()
    assert sorted(set(range(16)) - set(kept)) == [3, 9, 13]
    size = torch.tensor([[3.0, 1.0, 2.0], [5.0, 2.0, 2.0]])
    assert largest_tokens(size, 4).tolist() == [0, 2, 3, 4]
