"""What a server runs, what a request may change, and which methods vLLM cannot run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from earlytom import Compose, EarlyTom, load_method
from earlytom.errors import BudgetError, ConfigError
from earlytom.integrations.vllm.item import VideoItem, from_tensor, to_tensor
from earlytom.integrations.vllm.settings import (
    check_servable,
    served_method,
    split_ratio,
    with_ratio,
)
from earlytom.registry import list_methods

LAYERS, DECODER, GRID = 12, 6, (7, 7)


def config(earlytom: Any) -> SimpleNamespace:
    return SimpleNamespace(earlytom=earlytom)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, EarlyTom()),
        ({}, EarlyTom()),
        (
            {"retention_ratio": 0.1, "merge_layers": [1, 4]},
            EarlyTom(retention_ratio=0.1, merge_layers=(1, 4)),
        ),
        (
            {"method": "vidcom2", "retention_ratio": 0.3},
            load_method("vidcom2", retention_ratio=0.3),
        ),
        ({"method": "none"}, None),
    ],
)
def test_the_method_of_a_server(given: Any, expected: Any) -> None:
    assert served_method(config(given)) == expected


def test_without_a_key_the_default_method_runs() -> None:
    assert served_method(SimpleNamespace()) == EarlyTom()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("vidcom2", "must be an object"),
        ({"method": "nothing"}, "unknown method"),
        ({"method": "none", "retention_ratio": 0.5}, "has no settings"),
        ({"retention_ratio": 2}, "retention_ratio"),
        ({"ratio": 0.1}, "no setting 'ratio'"),
        ({"retention_ratio": 0.1234567890123456789e-9}, "decimals"),
    ],
)
def test_bad_server_settings(given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        served_method(config(given))


def test_a_request_brings_its_ratio_and_other_arguments() -> None:
    assert split_ratio({"retention_ratio": 0.1, "fps": 2}) == (0.1, {"fps": 2})
    assert split_ratio({"fps": 2}) == (None, {"fps": 2})


@pytest.mark.parametrize("ratio", [0, -1, 1.01, float("nan"), "0.5", True, [0.5]])
def test_bad_ratios_of_a_request(ratio: Any) -> None:
    with pytest.raises(ConfigError, match="retention_ratio"):
        split_ratio({"retention_ratio": ratio})


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (EarlyTom(policy="official"), "exactly its token budget"),
        (EarlyTom(policy="paper"), "exactly its token budget"),
        (EarlyTom(selection="none"), "exactly its token budget"),
        (EarlyTom(inner_merge_layer=2), "inside the language model"),
        (load_method("tome"), "reduces the patches"),
        (load_method("resize"), "resolution"),
        (load_method("fastv"), "inside the language model"),
        (load_method("dycoke", decode_ratio=0.5), "while decoding"),
        (load_method("afterimage"), "weight_power"),
        (load_method("tome", retention_ratio=1), "reduces the patches"),
        (Compose(load_method("tome"), load_method("vidcom2")), "reduces the patches"),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_methods_that_cannot_be_served_say_why(method: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be served by vLLM: .*{why}"):
        check_servable(method, LAYERS, DECODER, GRID)


@pytest.mark.parametrize(
    "method",
    [
        EarlyTom(),
        EarlyTom(frames=(8, 4)),
        load_method("afterimage", weight_power=0),
        Compose(EarlyTom(policy="official"), load_method("vidcom2")),
        Compose(EarlyTom(policy="paper"), load_method("visionzip")),
    ],
)
def test_methods_that_can_be_served(method: Any) -> None:
    check_servable(method, LAYERS, DECODER, GRID)


def test_patch_reuse_needs_frames_as_rows_of_a_batch() -> None:
    method = load_method("afterimage", weight_power=0)
    with pytest.raises(ConfigError, match="packed encoder"):
        check_servable(method, LAYERS, DECODER, None)
    check_servable(
        load_method("afterimage", weight_power=0, encoder_budget=1), LAYERS, DECODER, None
    )


def test_every_method_is_either_served_or_refused_with_a_reason() -> None:
    reasons = {}
    for name in list_methods():
        if name == "compose":
            continue
        try:
            check_servable(load_method(name), LAYERS, DECODER, GRID)
        except ConfigError as e:
            reasons[name] = str(e)
    assert all("cannot be served by vLLM" in reason for reason in reasons.values())
    assert not {"earlytom", "vidcom2", "visionzip", "evs", "random"} & set(reasons)


# ---------------------------------------------------------------------------- what travels
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.7, 1 / 3, 0.123456789, 1.0])
def test_an_item_arrives_as_it_left(ratio: float) -> None:
    item = VideoItem(ratio, 123456, 768, (17, 33), 0.41666666)
    (back,) = from_tensor(to_tensor([item]))
    assert back.ratio == ratio
    assert (back.tokens, back.frames, back.grid) == (item.tokens, item.frames, item.grid)
    assert to_tensor([back]).tolist() == to_tensor([item]).tolist()
    assert back.seconds == pytest.approx(item.seconds, rel=1e-7)


def test_counts_are_exact_and_those_of_the_method() -> None:
    for ratio in (0.1, 0.3, 0.7):
        method = EarlyTom(retention_ratio=ratio)
        item = VideoItem.plan(method, None, 10, (1, 1), LAYERS)
        assert item.tokens == method.token_budget(10, 1) == round(ratio * 10)
        asked = VideoItem.plan(EarlyTom(), ratio, 10, (1, 1), LAYERS)
        assert asked == item


def test_ratio_1_and_no_method_leave_a_video_whole() -> None:
    for method, ratio in (
        (None, None),
        (None, 0.5),
        (EarlyTom(), 1),
        (EarlyTom(retention_ratio=1), None),
    ):
        item = VideoItem.plan(method, ratio, 4, (7, 7), LAYERS)
        assert item.whole
        assert item.tokens == 4 * 49
    assert not VideoItem.plan(EarlyTom(retention_ratio=1), 0.5, 4, (7, 7), LAYERS).whole


def test_a_video_too_short_for_its_frames_is_refused_before_it_is_encoded() -> None:
    with pytest.raises(BudgetError, match="the video has 4"):
        VideoItem.plan(EarlyTom(frames=(8, 6)), None, 4, (7, 7), LAYERS)


def test_another_ratio_reaches_the_stage_that_counts() -> None:
    both = Compose(EarlyTom(), load_method("vidcom2", retention_ratio=0.5))
    assert with_ratio(both, 0.1).token_budget(10, 10) == 10
    assert with_ratio(both, 0.5) is both
