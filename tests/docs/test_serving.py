"""The arithmetic behind the capacity table of ``docs/serving.md``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from earlytom.bench.speed.architectures import architecture, build
from tests.docs.serving import PICTURES, capacity, kv_bytes, visual_tokens


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("llava-onevision-7b", (6272, 1568, 628)), ("qwen2.5-vl-7b", (9568, 2392, 957))],
)
def test_counts_by_hand(name: str, tokens: Any) -> None:
    """14 x 14 per frame; 13 x 23 per pair of pictures."""
    config = build(architecture(name), torch.device("meta"), torch.bfloat16, None).config
    assert tuple(visual_tokens(config, PICTURES[name], r) for r in (1, 0.25, 0.1)) == tokens
    assert kv_bytes(config.get_text_config()) == 2 * 28 * 4 * 128 * 2


def test_fewer_tokens_make_room() -> None:
    rows = [[x.strip() for x in line.split("|")[1:-1]] for line in capacity().splitlines()[2:]]
    off, *_, tenth = rows[:3]
    assert off[2:] == ["6272", "367 MB", "141"]  # (72 - 4 - 16.06) GB / 367 MB
    assert int(tenth[4]) > 8 * int(off[4])
