import torch
from hypothesis import given
from hypothesis import strategies as st

from earlytom.ops.rows import gather_masked, place_rows


@given(*[st.integers(1, n) for n in (3, 6, 6, 5)], st.integers(0, 99))
def test_gather_masked(batch: int, length: int, count: int, dim: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, dim, generator=g)
    x[torch.rand(batch, length, generator=g) < 0.3] = torch.nan  # must not reach masked rows
    index = torch.randint(length, (batch, count), generator=g)
    mask = torch.rand(batch, count, generator=g) < 0.6
    out = gather_masked(x, index, mask, -1.0)
    for b in range(batch):
        for i in range(count):
            expected = x[b, index[b, i]] if mask[b, i] else torch.full((dim,), -1.0)
            assert torch.equal(out[b, i].nan_to_num(7.0), expected.nan_to_num(7.0))


def test_place_rows() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    out = place_rows(x, torch.tensor([5, 0]), 6, torch.tensor([1, 3]))
    assert torch.equal(out[[5, 0]], x[[1, 3]])
    assert bool(out[1:5].isnan().all())
    out[[5, 0]].sum().backward()
    assert x.grad is not None
    assert x.grad.sum(1).tolist() == [0, 3, 0, 3]
    whole = place_rows(x.detach(), torch.tensor([2, 3, 0, 1]), 4)
    assert torch.equal(whole, x.detach()[[2, 3, 0, 1]])
