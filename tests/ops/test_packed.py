import pytest
import torch

from earlytom.ops.packed import packed_attention
from tests.ops.fresh_plan import by_frame, plan


@pytest.mark.parametrize(
    ("frames", "patches", "heads", "kv_heads", "dim"),
    [(4, 9, 2, 2, 8), (1, 1, 1, 1, 3), (5, 6, 6, 2, 4)],
)
def test_equals_one_frame_after_the_other(
    frames: int, patches: int, heads: int, kv_heads: int, dim: int
) -> None:
    source, starts = plan(frames, patches, torch.device("cpu"))
    g = torch.Generator().manual_seed(frames)
    rows = int(starts[-1])
    query = torch.randn(1, heads, rows, dim, generator=g)
    key, value = torch.randn(2, 1, kv_heads, rows, dim, generator=g)
    args = (query, key, value, source, starts, 0.4)
    torch.testing.assert_close(packed_attention(*args), by_frame(*args).float())
