"""Token budgets refer to the input video, also where an encoder stage has merged its frames."""

import dataclasses
from typing import Any

import pytest
import torch

from earlytom.method import Method, list_methods, method_class
from earlytom.stages import TokenSelection, VideoFeatures, VideoState
from tests.ops.helpers import video

INPUT, LEFT, SIZE = 16, 7, 12
OFFICIAL = {"policy": "official"}


def selecting() -> list[str]:
    own = [n for n in list_methods() if n != "compose"]
    return [n for n in own if method_class(n)().selects_tokens]


def choose(method: Method, seed: int = 0) -> TokenSelection | None:
    """Stage II on 7 frames that were 16."""
    g = torch.Generator().manual_seed(seed)
    x = video(LEFT, SIZE, 8, seed=seed)
    first = tuple(2 * t for t in range(LEFT))
    state = VideoState(INPUT, first, (2,) * (LEFT - 1) + (4,), n_layers=12)
    received = torch.rand(LEFT, SIZE, generator=g)
    keys = torch.randn(LEFT, SIZE, 4, generator=g)
    return method.select_tokens(VideoFeatures(x, received, (3, 4), state, keys))


def kept(chosen: TokenSelection | None) -> int:
    return LEFT * SIZE if chosen is None else chosen.index.numel()


def build(name: str, ratio: float, **settings: Any) -> Method:
    return dataclasses.replace(method_class(name)(**settings), retention_ratio=ratio)


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.25, 0.4, 0.43, 0.7, 1.0])
@pytest.mark.parametrize("name", selecting())
def test_budget_of_the_input(name: str, ratio: float) -> None:
    method = build(name, ratio)
    wanted = min(method.token_budget(INPUT, SIZE), LEFT * SIZE)
    count = kept(choose(method))
    assert 1 <= count <= wanted
    if method.exact_budget:
        assert count == wanted


@pytest.mark.parametrize("name", ["earlytom", "evs", "fastvid", "vidcom2", "visionzip"])
@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.6])
def test_official_shares_follow_the_frames_left(name: str, ratio: float) -> None:
    method = build(name, ratio, **OFFICIAL)
    share = kept(choose(method)) / (INPUT * SIZE)
    assert share == pytest.approx(min(ratio, LEFT / INPUT), rel=0.15)


@pytest.mark.parametrize("name", ["dycoke", "holitom", "prumerge", "prunevid"])
def test_other_official_policies_stay_below(name: str) -> None:
    """They keep their share of the frames left, plus what their rounding adds."""
    count = kept(choose(build(name, 0.4, **OFFICIAL)))
    assert 1 <= count <= 0.4 * INPUT * SIZE
