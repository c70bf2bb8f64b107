import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import earlytom
from earlytom.errors import ConfigError
from earlytom.method import Method
from earlytom.methods import PyramidDrop
from earlytom.methods.pyramiddrop import solve_decay
from earlytom.stages import InnerPoint
from tests.families import PROMPTS, Family, forward
from tests.inner_states import inner_state, span
from tests.methods.merging import check_vectors

FAMILY = Family("llava_onevision")


def test_vectors() -> None:
    check_vectors("pyramiddrop_0*.npz", 2)


@pytest.mark.parametrize(
    ("n_layers", "layers"),
    [(32, (8, 16, 24)), (28, (7, 14, 21)), (24, (6, 12, 18)), (4, (1, 2, 3)), (3, (1, 2)),
     (2, (1,))],
)  # fmt: skip
def test_layers_scale_with_the_depth(n_layers: int, layers: tuple[int, ...]) -> None:
    method = PyramidDrop(retention_ratio=0.7)
    assert method.inner_points(n_layers) == tuple(InnerPoint(k, "own") for k in layers)


def test_the_default_ratio_is_the_published_schedule() -> None:
    shares = (0.5, 0.25, 0.125)
    assert PyramidDrop().left_behind(32) == pytest.approx(shares)
    assert PyramidDrop(policy="official").left_behind(28) == shares
    assert PyramidDrop(policy="official", retention_ratio=0.9).left_behind(32) == shares


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=6, unique=True).map(sorted),
    st.floats(0.01, 1.0),
)
def test_decay_spends_the_total(bounds: list[int], part: float) -> None:
    bounds = [0, *bounds]
    total = bounds[1] + part * (bounds[-1] - bounds[1])
    decay = solve_decay(total, bounds)
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    assert 0 < decay <= 1
    assert sum(n * decay**i for i, n in enumerate(lengths)) == pytest.approx(total)


def test_behind_is_the_share_after_the_last_point() -> None:
    method = PyramidDrop(retention_ratio=0.1, budget="behind")
    assert method.left_behind(28)[-1] == pytest.approx(0.1)
    assert method.left_behind(28)[0] == pytest.approx(0.1 ** (1 / 3))


def test_what_cannot_be_reached_is_refused_when_put_on() -> None:
    method = PyramidDrop(retention_ratio=0.25)
    with pytest.raises(ConfigError, match=r"pyramiddrop keeps at least 0\.250 .* \(layer 7 prunes"):
        method.inner_points(28)
    with pytest.raises(ConfigError, match=r"on 4 layers \(layer 1 prunes first\)"):
        earlytom.compress(FAMILY.model(), method)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        ({"layers": (2, 1)}, "ascending"),
        ({"layers": ()}, "at least one"),
        ({"layers": (0, 1)}, ">= 1"),
        ({"shares": (0.5,)}, "no meaning"),
        ({"policy": "official", "shares": (0.5, 0.6)}, "ascend"),
        ({"policy": "official", "shares": (0.0,)}, "shares"),
        ({"budget": "some"}, "budget"),
        ({"policy": "paper"}, "policy"),
    ],
)
def test_bad_settings(bad: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PyramidDrop(**bad)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"layers": (1, 4)}, r"out of range.*1\.\.3"),
        ({"policy": "official", "shares": (0.5,)}, "3 layers need as many shares"),
    ],
)
def test_settings_that_do_not_fit_the_model(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        PyramidDrop(**settings).inner_points(4)


def test_json_round_trip() -> None:
    method = PyramidDrop(policy="official", layers=(2, 3), shares=(0.4, 0.2))
    assert Method.from_json(method.to_json()) == method


def test_positions() -> None:
    assert PyramidDrop().inner_positions == "keep"
    assert PyramidDrop(policy="official").inner_positions == "renumber"


def test_counts_refer_to_what_entered() -> None:
    """The second point keeps a share of all visual tokens, not of those left."""
    method = PyramidDrop(policy="official", layers=(1, 2), shares=(0.5, 0.3))
    memory: dict[str, Any] = {}
    start = inner_state(torch.randn(23, 2), span(23, 1, 21), memory=memory, point=-1)
    method.inner_start(start)
    state = inner_state(
        torch.randn(12, 2), span(12, 1, 10), torch.rand(2, 12), memory=memory, point=1, n_layers=4
    )
    merge = method.merge_inner(state)
    assert merge is not None
    assert merge.index.numel() == 2 + 6  # int(21 * 0.3)


@pytest.mark.parametrize("prompt", ["one_video", "batch_mixed"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_reported_layer_average(ratio: float, prompt: str) -> None:
    model = FAMILY.model()
    with PyramidDrop(retention_ratio=ratio)(model):
        forward(model, FAMILY.inputs(PROMPTS[prompt]))
    report = earlytom.last_report(model)
    assert report is not None
    slack = len(PROMPTS[prompt]) / report.layer_total
    assert ratio - 1e-6 <= report.llm_retention <= ratio + slack
    assert list(report.layer_tokens) == sorted(report.layer_tokens, reverse=True)
    assert len(set(report.layer_tokens)) == 4
