import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earlytom.ops.received import received_attention
from tests.ops.helpers import LargestTensor


def explicit(q: Tensor, k: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    logits = q.double() @ k.double().transpose(-1, -2) * scale
    if mask is not None:
        logits = logits.masked_fill(~mask, -1e30) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1).mean(dim=(1, 2)).float()


@settings(deadline=None)
@given(st.integers(1, 4), st.sampled_from([1, 2, 6]), st.integers(1, 20), st.integers(1, 20000))
def test_equals_the_explicit_softmax(batch: int, heads: int, size: int, max_bytes: int) -> None:
    g = torch.Generator().manual_seed(size)
    q = torch.randn(batch, heads, size, 4, generator=g)
    k = torch.randn(batch, heads, size, 4, generator=g)
    a = received_attention(q, k, 0.5, max_bytes=max_bytes)
    assert a.dtype == torch.float32
    assert torch.allclose(a, explicit(q, k, 0.5), atol=1e-6)
    assert torch.allclose(a.sum(1), torch.ones(batch), atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 4, 7, 7), (3, 1, 7, 7), (1, 1, 7, 7), (3, 1, 1, 7), (7, 7)])
@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("max_bytes", [1, 500, 1 << 20])
def test_masks_broadcast(shape: tuple[int, ...], boolean: bool, max_bytes: int) -> None:
    q, k = torch.randn(2, 3, 4, 7, 5)
    mask = torch.rand(shape) > 0.3
    mask[..., 0] = True
    if not boolean:
        mask = torch.randn(shape)
    a = received_attention(q, k, 0.3, mask, max_bytes)
    assert torch.allclose(a, explicit(q, k, 0.3, mask), atol=1e-6)


def test_grouped_queries_and_half_precision() -> None:
    q, k = torch.randn(2, 6, 9, 8).half(), torch.randn(2, 2, 9, 8).half()
    a = received_attention(q, k, 0.35)
    assert torch.allclose(a, explicit(q, k.repeat_interleave(3, 1), 0.35), atol=1e-5)


@pytest.mark.parametrize("max_bytes", [6 * 40 * 4, 10_000, 100_000])
def test_no_temporary_exceeds_the_bound(max_bytes: int) -> None:
    q, k = torch.randn(2, 5, 6, 40, 8)
    with LargestTensor() as meter:
        received_attention(q, k, 0.3, max_bytes=max_bytes)
    assert 0 < meter.bytes <= max_bytes
    assert max_bytes < 5 * 6 * 40 * 40 * 4  # a whole attention map would not have fitted


def test_autocast_does_not_lower_the_precision() -> None:
    q, k = torch.randn(2, 2, 3, 16, 8)
    expected = received_attention(q, k, 0.4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(received_attention(q, k, 0.4), expected)
