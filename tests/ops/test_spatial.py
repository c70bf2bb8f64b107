import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from earlytom.ops.spatial import match_windows, window_patches, window_similarity

CPU = torch.device("cpu")
sides = st.integers(2, 7)
edges = st.integers(1, 3)


@given(sides, sides, edges, edges)
def test_windows_tile_the_grid(height: int, width: int, a: int, b: int) -> None:
    patches = window_patches((height, width), (a, b), CPU).tolist()
    expected = [
        [(i + y) * width + j + x for y in range(a) for x in range(b)]
        for i in range(0, height - a + 1, a)
        for j in range(0, width - b + 1, b)
    ]
    assert patches == expected


@given(sides, sides, st.integers(0, 99), st.data())
def test_merging_windows_equals_a_loop(
    height: int, width: int, seed: int, data: st.DataObject
) -> None:
    n = height * width
    x = torch.randn(2, n, 5, generator=torch.Generator().manual_seed(seed))
    patches = window_patches((height, width), (2, 2), CPU)
    similarity = window_similarity(x, patches)
    count = data.draw(st.integers(0, len(patches)))
    target = match_windows(similarity, patches, n, count).target(n)
    for t in range(2):
        means = [pair_mean(x[t, w]) for w in patches.tolist()]
        torch.testing.assert_close(similarity[t], torch.tensor(means))
        order = sorted(range(len(patches)), key=lambda i: (-float(similarity[t, i]), i))[:count]
        merged = [patches[i].tolist() for i in order]
        inside = [p for w in merged for p in w]
        rest = [p for p in range(n) if p not in inside]
        for slot, members in enumerate(merged + [[p] for p in rest]):
            assert target[t, members].tolist() == [slot] * len(members)


def pair_mean(x: Tensor) -> float:
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
    return sum(float(torch.cosine_similarity(x[i], x[j], dim=0)) for i, j in pairs) / len(pairs)
