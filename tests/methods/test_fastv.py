from fractions import Fraction
from typing import Any

import pytest
import torch

import earlytom
from earlytom.errors import ConfigError
from earlytom.method import Method
from earlytom.methods import FastV
from earlytom.stages import InnerPoint
from tests.families import FRAMES, PROMPTS, Family, forward
from tests.inner_states import inner_state, span
from tests.methods.merging import check_vectors

GRID = Family("llava_video", tokens_per_frame=4, newlines_per_video=FRAMES * 2)


def test_vectors() -> None:
    check_vectors("fastv_0*.npz", 2)


@pytest.mark.parametrize(
    ("n_layers", "layer"), [(2, 1), (4, 1), (6, 1), (12, 1), (15, 1), (16, 2), (28, 2), (80, 2)]
)
def test_layer_scales_with_the_depth(n_layers: int, layer: int) -> None:
    assert FastV(retention_ratio=0.9).inner_points(n_layers) == (InnerPoint(layer),)


@pytest.mark.parametrize("ratio", [0.1, 0.15, 0.2, 0.25, 0.5, 0.99])
def test_share_makes_the_layer_average(ratio: float) -> None:
    share = FastV(retention_ratio=ratio).share(28)
    assert Fraction(2, 28) + Fraction(26, 28) * share == Fraction(str(ratio))
    assert FastV(retention_ratio=ratio, budget="behind").share(28) == Fraction(str(ratio))


def test_published_equivalents() -> None:
    """The shares that match the compute of 25, 20, 15 and 10 % of the tokens on 28 layers."""
    shares = [float(FastV(retention_ratio=r).share(28)) for r in (0.25, 0.2, 0.15, 0.1)]
    assert shares == pytest.approx([0.192, 0.138, 0.085, 0.031], abs=6e-4)


def test_what_cannot_be_reached_is_refused_when_put_on() -> None:
    method = FastV(layer=2, retention_ratio=0.3)
    with pytest.raises(
        ConfigError, match=r"at least 0\.333 .* 6 layers \(layer 2 prunes first\).*budget='behind'"
    ):
        method.inner_points(6)
    assert FastV(layer=2, retention_ratio=0.34).share(6) == Fraction("0.34") * 6 / 4 - Fraction(
        1, 2
    )
    assert FastV(layer=2, retention_ratio=0.3, budget="behind").inner_points(6)
    model = GRID.model()
    with pytest.raises(ConfigError, match=r"0\.250 of the visual tokens on 4 layers"):
        earlytom.compress(model, FastV(retention_ratio=0.25))
    with pytest.raises(ConfigError, match=r"layer 4 is out of range.*1\.\.3"):
        earlytom.compress(model, FastV(retention_ratio=0.9, layer=4))


@pytest.mark.parametrize(
    "bad", [{"layer": 0}, {"layer": 1.5}, {"policy": "paper"}, {"budget": "all"}]
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        FastV(**bad)


def test_json_round_trip() -> None:
    method = FastV(layer=3, budget="behind", policy="official", retention_ratio=0.4)
    assert Method.from_json(method.to_json()) == method


def test_ratio_one_does_nothing() -> None:
    assert FastV(retention_ratio=1).inner_points(28) == ()


# ---------------------------------------------------------------------- decisions
def test_keeps_what_is_looked_at_and_all_text() -> None:
    visual = span(12, 2, 8)
    rows = torch.zeros(2, 12)
    rows[0, [4, 9]] = 0.5  # heads are averaged
    rows[1, [4, 3]] = 0.3
    rows[:, 11] = 1.0
    state = inner_state(torch.randn(12, 3), visual, rows)
    merge = FastV(retention_ratio=0.25, budget="behind").merge_inner(state)
    assert merge is not None
    assert merge.hidden is None
    assert merge.index.tolist() == [0, 1, 4, 9, 10, 11]


def test_ties_go_to_the_lowest_column() -> None:
    state = inner_state(torch.randn(10, 3), span(10, 1, 8), torch.ones(2, 10))
    merge = FastV(retention_ratio=0.5, budget="behind").merge_inner(state)
    assert merge is not None
    assert merge.index.tolist() == [0, 1, 2, 3, 4, 9]


def test_newlines_stay_unless_official() -> None:
    visual, rows = span(12, 1, 10), torch.rand(1, 12)
    rows[0, [5, 10]] = 0  # newline tokens that nobody looks at
    patch = torch.tensor([-1, 0, 1, 2, 3, -2, 4, 5, 6, 7, -2, -1])
    state = inner_state(torch.randn(12, 3), visual, rows, patch=patch, entered=8, uncompressed=8)
    exact = FastV(retention_ratio=0.5, budget="behind").merge_inner(state)
    assert exact is not None
    assert {0, 5, 10, 11} <= set(exact.index.tolist())
    assert exact.index.numel() == 4 + 4
    official = FastV(retention_ratio=0.5, budget="behind", policy="official").merge_inner(state)
    assert official is not None
    assert not {5, 10} & set(official.index.tolist())
    assert official.index.numel() == 2 + 5


def test_counts_round_as_released_or_exactly() -> None:
    def kept(n: int, **settings: Any) -> int:
        state = inner_state(torch.randn(n, 2), span(n, 0, n), torch.rand(1, n))
        merge = FastV(budget="behind", **settings).merge_inner(state)
        return n if merge is None else merge.index.numel()

    assert kept(10, retention_ratio=0.25, policy="official") == 2  # round(2.5), halves to even
    assert kept(10, retention_ratio=0.25) == 3
    assert kept(100, retention_ratio=0.07) == 7
    assert kept(3, retention_ratio=0.01) == 1


def test_tokens_gone_in_front_count() -> None:
    """The share refers to the uncompressed model, so a method in front leaves less to drop."""
    visual = span(8, 0, 8)
    state = inner_state(torch.randn(8, 2), visual, torch.rand(1, 8), uncompressed=20)
    merge = FastV(retention_ratio=0.25, budget="behind").merge_inner(state)
    assert merge is not None
    assert merge.index.numel() == 5
    assert FastV(retention_ratio=0.4, budget="behind").merge_inner(state) is None


@pytest.mark.parametrize("family", [Family("llava_onevision"), GRID], ids=lambda f: f.name)
@pytest.mark.parametrize("prompt", ["one_video", "batch_mixed"])
def test_reported_layer_average(family: Family, prompt: str) -> None:
    model, method = family.model(), FastV(retention_ratio=0.5)
    with method(model):
        forward(model, family.inputs(PROMPTS[prompt]))
    report = earlytom.last_report(model)
    assert report is not None
    rows = len(PROMPTS[prompt])
    assert 0.5 <= report.llm_retention < 0.5 + rows / report.layer_total
    assert report.achieved_retention == 1
    assert report.layer_tokens[0] == report.layer_total > report.layer_tokens[1]
