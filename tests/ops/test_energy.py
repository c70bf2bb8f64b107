import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from earlytom.ops.energy import energy, match_by_energy
from earlytom.ops.tensors import unit_rows


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    st.integers(1, 8),
    st.floats(0, 1),
    st.floats(0.1, 1),
    st.booleans(),
    st.integers(0, 99),
)
def test_energy_equals_its_definition(
    n: int, margin: float, alpha: float, shifted: bool, seed: int
) -> None:
    unit = unit_rows(random(2, n, 3, seed=seed))

    def f(x: float) -> float:
        if abs(x - margin) < 1e-5:
            return math.nan  # either side of the step
        if x > margin:
            return x - margin if shifted else x
        return alpha * (math.exp(x - margin) - 1)

    got = energy(unit, margin, alpha, shifted, max_bytes=1)
    for t in range(2):
        for i in range(n):
            want = sum(f(float(unit[t, i] @ unit[t, j])) for j in range(n)) / n
            if not math.isnan(want):
                assert float(got[t, i]) == pytest.approx(want, abs=1e-5)


@given(st.integers(2, 15), st.booleans(), st.integers(0, 99), st.data())
def test_merging_by_energy_equals_a_loop(
    n: int, every_edge: bool, seed: int, data: st.DataObject
) -> None:
    x = random(1, n, 4, seed=seed)
    r = data.draw(st.integers(1, n // 2))
    got = match_by_energy(x, r, 0.4, shifted=True, every_edge=every_edge).target(n)[0].tolist()
    cos = (unit_rows(x) @ unit_rows(x).mT)[0]
    score = energy(unit_rows(x), 0.4, shifted=True)[0].tolist()
    order = sorted(range(n), key=lambda i: (-score[i], i))
    mergeable, rest = (order, []) if every_edge else (order[: 2 * r], order[2 * r :])
    a, b = mergeable[::2], mergeable[1::2]
    partner = {i: max(b, key=lambda j: float(cos[i, j])) for i in a}
    gone = sorted(a, key=lambda i: -float(cos[i, partner[i]]))[:r]
    if every_edge:
        rest = sorted((i for i in a if i not in gone), key=lambda i: -float(cos[i, partner[i]]))
    out = rest + b
    assert got == [out.index(partner[i] if i in gone else i) for i in range(n)]


def test_isolated_tokens_are_protected() -> None:
    x = torch.eye(8)[None]
    x[0, :4] = x[0, 0] + 0.01 * x[0, :4]  # four near-duplicates, four loners
    target = match_by_energy(x, 2, 0.9).target(8)[0]
    assert target[4:].unique().numel() == 4
    assert target[:4].unique().numel() == 2
    assert set(target[:4].tolist()).isdisjoint(target[4:].tolist())


def test_range_is_checked() -> None:
    assert match_by_energy(random(1, 5, 3), 0, 0.5).target(5).tolist() == [[0, 1, 2, 3, 4]]
    with pytest.raises(ValueError, match="cannot merge 3 of 5 tokens"):
        match_by_energy(random(1, 5, 3), 3, 0.5)
