from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom.ops.duplicates import least_duplicated
from earlytom.ops.reconstruct import Reconstruction, most_changed


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 12), st.integers(1, 12))
def test_reconstruction_equals_loops(seed: int, frames: int, patches: int, near: int) -> None:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(frames, patches, 5, generator=g)
    n = 1 + seed % patches
    kept = torch.rand(frames, patches, generator=g).argsort(1)[:, :n].sort(1).values
    done = Reconstruction.start(hidden, kept, near)
    assert torch.equal(done.whole(done.before), hidden)
    later = torch.randn(frames, n, 5, generator=g)
    whole = done.whole(later)
    for t in range(frames):
        mine = kept[t].tolist()
        for p in range(patches):
            if p in mine:
                expected = later[t, mine.index(p)]
            else:
                distance = (hidden[t, mine] - hidden[t, p]).norm(dim=1)
                nearest = distance.argsort(stable=True)[:near]
                moved = later[t, nearest] - hidden[t, mine][nearest]
                expected = hidden[t, p] + moved.mean(0)
            torch.testing.assert_close(whole[t, p], expected, atol=1e-4, rtol=1e-4)


def test_patches_that_moved_stay() -> None:
    before = torch.zeros(2, 6, 3)
    now = before.clone()
    now[0, [1, 4]] = 1.0
    now[1, 5] = -2.0
    assert most_changed(now, before, 2).tolist() == [[1, 4], [0, 5]]


@given(st.integers(0, 10_000), st.integers(1, 14), st.integers(0, 5))
def test_least_duplicated_equals_loops(seed: int, count: int, text: int) -> None:
    g = torch.Generator().manual_seed(seed)
    n = 3 + 14 + text
    hidden = torch.randn(n, 6, generator=g)
    visual = torch.zeros(n, dtype=torch.bool)
    visual[3:17] = True
    chosen = least_duplicated(hidden, visual, count, (4, 4))
    assert int(chosen.sum()) == count
    assert not chosen[~visual].any()
    norm = hidden.abs().sum(1)
    own = sorted(range(3, 17), key=lambda i: -norm[i])[: min(4, count)]
    assert chosen[own].all()
    if text < 4:
        return  # fewer text columns than pivots: which fill up is not defined
    others = sorted(range(17, n), key=lambda i: -norm[i])[:4]
    pivots, kept = sorted(own + others), set(own)
    rest = count - len(own)
    for i, pivot in enumerate(pivots):
        share = (i + 1) * rest // len(pivots) - i * rest // len(pivots)
        free = [c for c in range(3, 17) if c not in kept]
        cos = {c: torch.cosine_similarity(hidden[pivot], hidden[c], dim=0).item() for c in free}
        kept.update(sorted(free, key=lambda c: cos[c])[:share])
    assert chosen.nonzero().flatten().tolist() == sorted(kept)
