"""Positions that ride along with embeddings, and positions of prompts."""

from __future__ import annotations

import pytest
import torch

from earlytom.integrations.vllm.model import flat_positions
from earlytom.integrations.vllm.places import Places, attach, channels, detach

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", [1, 3])
def test_offsets_are_exact_in_every_dtype(dtype: torch.dtype, axes: int) -> None:
    values = [0, 1, 255, 256, 257, 301, 65535, 65536, 256**3 - 1]
    offsets = torch.tensor(values).expand(axes, -1) - torch.arange(axes)[:, None] % 2
    offsets = offsets.clamp_min(0)
    rows = torch.randn(len(values), 8, dtype=dtype)
    wide = attach(rows, offsets)
    assert wide.shape == (len(values), 8 + channels(axes))
    assert wide.dtype == dtype
    bare, back = detach(wide, axes)
    assert torch.equal(bare, rows)
    assert torch.equal(back, offsets)


def places(capacity: int = 16, limit: int = 10**6) -> Places:
    return Places(3, 8, capacity, limit, torch.device("cpu"))


def test_a_step_gets_its_own_offsets_and_no_later_one_does() -> None:
    step, rows = places(), torch.randn(3, 8)
    offsets = torch.arange(9).view(3, 3) + 300
    image = torch.randn(2, 8)
    mask = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0], dtype=torch.bool)
    bare = step.take([image, attach(rows, offsets)], mask)
    assert [x.shape for x in bare] == [(2, 8), (3, 8)]
    base = torch.arange(24).view(3, 8)
    expected = base.clone()
    expected[:, 4:7] += offsets
    assert torch.equal(step.add(base), expected)
    assert step.take(None, None) == []
    assert torch.equal(step.add(base), base)


def test_a_part_of_a_video_keeps_its_offsets() -> None:
    step, offsets = places(), torch.arange(30).view(3, 10)
    wide = attach(torch.randn(10, 8), offsets)[4:7]  # a chunk of the prompt
    step.take([wide], torch.ones(3, dtype=torch.bool))
    assert torch.equal(step.add(torch.zeros(3, 3, dtype=torch.long)), offsets[:, 4:7])


def test_sums_stay_at_one_address_and_inside_the_table() -> None:
    step = places(limit=9)
    first, second = (step.add(torch.full((3, n), 20)) for n in (4, 2))
    assert first.data_ptr() == second.data_ptr()
    assert int(second.max()) == 9


# ---------------------------------------------------------------------------- prompts
def test_text_alone_counts_up() -> None:
    positions, lead = flat_positions(4, [], 3)
    assert positions.tolist() == [[0, 1, 2, 3]] * 3
    assert lead == 0


def test_text_goes_on_behind_the_span_of_a_video() -> None:
    # 2 tokens of text, 3 placeholders that span 10 positions, 2 tokens of text
    positions, lead = flat_positions(7, [(2, 3, None, 10)], 3)
    assert positions[0].tolist() == [0, 1, 2, 2, 2, 12, 13]
    assert lead == 13 + 1 - 7


def test_own_positions_of_a_part_are_relative_to_it() -> None:
    own = torch.tensor([[0, 0], [0, 1], [1, 0]])
    positions, lead = flat_positions(6, [(1, 2, own, 2), (4, 1, None, 5)], 3)
    assert positions.tolist() == [[0, 1, 1, 3, 4, 9], [0, 1, 2, 3, 4, 9], [0, 2, 1, 3, 4, 9]]
    assert lead == 10 - 6
