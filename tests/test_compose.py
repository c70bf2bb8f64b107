"""Stages of several methods as one: which stage is asked for what, budgets, JSON."""

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import earlytom
from earlytom import Compose, EarlyTom
from earlytom.errors import BudgetError, ConfigError
from earlytom.method import Method
from earlytom.methods import (
    EVS,
    Afterimage,
    DyCoke,
    FastV,
    FrameFusion,
    HoliTom,
    PyramidDrop,
    RandomTokens,
    VidCom2,
)
from earlytom.stages import InnerPoint, VideoState
from tests.families import PROMPTS, Family, forward, generate
from tests.toys import MergesAll
from tests.toys_patches import PATCH_TOYS

# what is not a question of the engine: use, data, and what every method has
NOT_HOOKS = {"name", "save", "load", "to_json", "from_json", "from_dict"}
DESCRIPTION = {"acts", "signals", "token_count", "citation", "url"}


def hooks() -> set[str]:
    own = {n for n in vars(Method) if not n.startswith("_")}
    fields = {f.name for f in dataclasses.fields(Method)}
    return own - fields - NOT_HOOKS - DESCRIPTION


def test_every_hook_is_forwarded() -> None:
    assert {"merge_frames", "reduce_patches", "select_tokens", "merge_inner"} <= hooks()
    missing = sorted(hooks() - set(vars(Compose)))
    assert not missing, f"Compose must forward {', '.join(missing)}"


def answering(stage: str) -> Method:
    """A method all of whose hooks return the name of its stage."""

    def hook(self: Any, *args: Any) -> str:
        return stage

    body: dict[str, Any] = {"name": f"stage-{stage}"}
    for name in hooks() - {"to_dict", "from_settings"}:
        is_property = isinstance(vars(Method)[name], property)
        body[name] = property(hook) if is_property else hook
    return dataclasses.dataclass(frozen=True, kw_only=True)(type(stage, (Method,), body))()


ENCODER = [
    "merge_points",
    "merge_frames",
    "fixed_merges",
    "finish_frames",
    "reduce_layers",
    "reduce_place",
    "patch_signals",
    "proportional_attention",
    "reduce_patches",
    "rebuild_layers",
    "restore_patches",
    "final_patches",
    "encoder_grid",
    "patch_budget",
    "reuse_layer",
    "fresh_patches",
]
INNER = [
    "inner_points",
    "inner_positions",
    "inner_start",
    "inner_queries",
    "merge_inner",
    "decode_layer",
    "decode_keep",
]
TOKENS = [
    "select_tokens",
    "token_budget",
    "selects_tokens",
    "weighs_tokens",
    "asked_positions",
    "resolved_positions",
    "score_layer",
]
SEVERAL = [
    "needs_keys",
    "needs_head",
    "restore_grid",
    "exact_budget",
    "to_dict",
    "from_settings",
    "without_reuse",
]


@pytest.mark.parametrize("with_inner", [True, False])
def test_who_answers(with_inner: bool) -> None:
    inner = answering("inner") if with_inner else None
    c = Compose(answering("encoder"), answering("tokens"), inner)
    assert sorted(ENCODER + INNER + TOKENS + SEVERAL) == sorted(hooks())
    expected = dict.fromkeys(ENCODER, "encoder") | dict.fromkeys(TOKENS, "tokens")
    expected |= dict.fromkeys(INNER, "inner" if with_inner else "tokens")
    for name, stage in expected.items():
        found = getattr(c, name)
        if callable(found):
            count = found.__code__.co_argcount - 1
            found = found(*[SimpleNamespace(uncompressed=9, entered=9)] * count)
        if name != "finish_frames" and name != "inner_start":
            assert found == stage, name


def test_ratio_and_budget_are_those_of_the_token_stage() -> None:
    c = Compose(EarlyTom(retention_ratio=0.1), HoliTom(retention_ratio=0.3))
    assert c.retention_ratio == 0.3
    assert c.exact_budget
    assert c.token_budget(8, 9) == 22
    other = dataclasses.replace(c, retention_ratio=0.5)
    assert (other.retention_ratio, other.tokens.retention_ratio) == (0.5, 0.5)
    assert other.encoder == c.encoder
    assert other == Compose(c.encoder, HoliTom(retention_ratio=0.5))
    assert not Compose(EarlyTom(), HoliTom(policy="official")).exact_budget
    assert not Compose(EarlyTom(), Method()).exact_budget
    with pytest.raises(ConfigError, match="retention_ratio must be a number"):
        dataclasses.replace(c, retention_ratio=2.0)
    with pytest.raises(ConfigError, match=r"must be at least 0\.25"):
        Compose(EarlyTom(), DyCoke(policy="official"), retention_ratio=0.1)


def test_reuse_of_patches_is_left_off_in_the_encoder_stage() -> None:
    c = Compose(Afterimage(), EVS(retention_ratio=0.3))
    assert c.without_reuse() == Compose(Afterimage(encoder_budget=1.0), EVS(retention_ratio=0.3))
    assert Compose(EarlyTom(), Afterimage()).without_reuse() is None


def test_frames_suffice_for_the_token_stage() -> None:
    """EarlyTom sizes its frames by the budget that really applies, not by its own ratio."""
    low = EarlyTom(retention_ratio=0.1, encoder_budget=0.4, merge_layers=(0, 1))
    hidden = torch.randn(8, 6, 16, generator=torch.Generator().manual_seed(0))

    def frames_left(method: Method) -> int:
        state, x = VideoState.start(8, 6), hidden
        for point in range(2):
            plan = method.merge_frames(x, state, point, 9)
            if plan is not None:
                x = plan.apply(x)
                state.apply(plan, point)
        return state.n_frames

    assert frames_left(low) <= 2
    assert frames_left(Compose(low, EVS(retention_ratio=0.5))) >= 4
    fixed = EarlyTom(retention_ratio=0.1, merge_layers=(0, 1), frames=(4, 2))
    with pytest.raises(BudgetError, match="keep at least 4 frames"):
        frames_left(Compose(fixed, EVS(retention_ratio=0.5)))


def test_an_adaptive_encoder_leaves_frames_for_an_exact_token_stage(
    family: Family, model: nn.Module
) -> None:
    method = Compose(MergesAll(), VidCom2(retention_ratio=0.5))
    with method(model):
        forward(model, family.inputs(PROMPTS["one_video"]))
    (video,) = earlytom.last_report(model).videos
    assert video.frames_out == family.frames // 2
    assert video.tokens_out == method.token_budget(video.frames_in, video.tokens_per_frame)


def test_positions() -> None:
    assert Compose(EarlyTom(), HoliTom()).resolved_positions() == "renumber"
    assert Compose(EarlyTom(), EVS()).resolved_positions() == "keep"
    assert Compose(EarlyTom(), EVS(positions="respace")).resolved_positions() == "respace"
    assert Compose(EarlyTom(), Method()).resolved_positions() == "keep", "no token stage"
    assert Compose(EarlyTom(), Method(positions="renumber")).resolved_positions() == "renumber"
    assert Compose(EarlyTom(), EVS(), positions="renumber").resolved_positions() == "renumber"
    with pytest.raises(ConfigError, match="positions must be one of"):
        Compose(EarlyTom(), EVS(), positions="here")


def test_signals() -> None:
    decoupled = EarlyTom(policy="official", merge_layers=(1, 3))
    assert Compose(decoupled, HoliTom()).score_layer(12) == 11
    assert Compose(EarlyTom(), decoupled).score_layer(12) == 3
    assert Compose(decoupled, EVS()).score_layer(12) == 3
    assert Compose(HoliTom(), EVS()).score_layer(12) is None, "nothing of it runs in the encoder"
    assert Compose(EarlyTom(), HoliTom(inner_merge_layer=2)).inner_points(4) == (InnerPoint(2),)
    both = Compose(encoder=EarlyTom(), tokens=EVS(), inner=HoliTom(inner_merge_layer=3))
    assert both.inner_points(4) == (InnerPoint(3),)


ROUND_TRIPS = [
    Compose(EarlyTom(merge_layers=(0, 2)), HoliTom(retention_ratio=0.3)),
    Compose(EarlyTom(), EVS(), HoliTom(inner_merge_layer=2), positions="keep"),
    Compose(Compose(EarlyTom(), EVS()), VidCom2(policy="vllm"), retention_ratio=0.4),
]


@pytest.mark.parametrize("method", ROUND_TRIPS)
def test_json_round_trip(method: Compose, tmp_path: Any) -> None:
    again = Method.from_json(method.to_json())
    assert again == method
    assert hash(again) == hash(method)
    method.save(tmp_path)
    assert Method.load(tmp_path) == method


def test_json_form() -> None:
    data = json.loads(ROUND_TRIPS[0].to_json())
    assert set(data) == {"method", "first", "second"}
    assert (data["first"]["method"], data["second"]["method"]) == ("earlytom", "holitom")
    assert set(json.loads(ROUND_TRIPS[1].to_json())) == {
        "method", "encoder", "tokens", "inner", "positions"
    }  # fmt: skip
    long = {"method": "compose", "encoder": data["first"], "tokens": data["second"]}
    assert Method.from_dict(long) == ROUND_TRIPS[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "encoder is missing"),
        ({"first": EVS()}, "tokens is missing"),
        ({"first": EVS(), "encoder": EVS(), "second": EVS()}, "'encoder' twice"),
        ({"first": EVS(), "second": "evs"}, "tokens must be a method, got 'evs'"),
        ({"first": EVS(), "second": None}, "tokens must be a method, got None"),
        ({"first": EVS(), "second": {"method": "magic"}}, "unknown method 'magic'"),
        ({"first": EVS(), "second": EVS(), "third": EVS()}, "no setting 'third'"),
        ({"first": EVS(), "second": EVS(), "inner": 3}, "inner must be a method"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        earlytom.load_method("compose", **settings)


# ---------------------------------------------------------------------- on a model
SAME = [
    EarlyTom(retention_ratio=0.25),
    EarlyTom(
        policy="official", merge_layers=(1, 3), retention_ratio=0.3, tau=0.5, inner_merge_layer=2
    ),
    HoliTom(retention_ratio=0.4, inner_merge_layer=2),
]


@pytest.mark.parametrize("method", SAME, ids=lambda m: m.name)
def test_a_method_with_itself_is_that_method(
    family: Family, model: nn.Module, method: Method
) -> None:
    inputs = family.inputs(PROMPTS["batch_padded"])
    results = []
    for m in (method, Compose(method, method)):
        with m(model):
            results.append((forward(model, inputs).logits, generate(model, inputs)))
    (logits, tokens), (same_logits, same_tokens) = results
    assert torch.equal(logits, same_logits)
    assert torch.equal(tokens, same_tokens)


def test_both_stages_run(family: Family, model: nn.Module) -> None:
    c = Compose(EarlyTom(frames=(6, 5)), RandomTokens(retention_ratio=0.3, seed=1))
    with c(model):
        forward(model, family.inputs(PROMPTS["one_video"]))
    report = earlytom.last_report(model)
    assert report is not None
    assert (report.method, report.retention_ratio) == ("compose", 0.3)
    (one,) = report.videos
    assert (one.frames_in, one.frames_out) == (8, 5)
    assert one.tokens_out == c.token_budget(8, family.tokens_per_frame)


@pytest.mark.parametrize(
    "name", ["patches-keys", "patches-drop-input", "patches-keys-proportional"]
)
def test_patches_are_restored_for_a_token_stage(
    family: Family, model: nn.Module, name: str
) -> None:
    """The encoder goes by its own ratio, the token stage by its own."""
    first = PATCH_TOYS[name]
    alone, c = dataclasses.replace(first), Compose(first, EVS(retention_ratio=0.2))
    passed = []
    for m in (alone, c):
        with m(model):
            forward(model, family.inputs(PROMPTS["one_video"]))
        report = earlytom.last_report(model)
        assert report is not None
        passed.append(report.videos[0].patch_reductions)
    assert passed[0] == passed[1] != ()
    assert report.videos[0].tokens_out == c.token_budget(8, family.tokens_per_frame)


def test_patches_left_go_on_without_a_token_stage(family: Family, model: nn.Module) -> None:
    """With a method that acts inside the language model only, as with the encoder's alone."""
    inputs = family.inputs(PROMPTS["batch_padded"])
    first = PATCH_TOYS["patches-average"]
    logits = []
    for m in (first, Compose(first, Method(retention_ratio=0.9))):
        with m(model):
            logits.append(forward(model, inputs).logits)
    assert torch.equal(*logits)


def test_inside_the_language_model_behind_merged_frames(model: nn.Module, family: Family) -> None:
    """FastV counts in tokens of the uncompressed video, so merged frames leave it less to prune."""
    inputs = family.inputs(PROMPTS["one_video"])
    alone = FastV(retention_ratio=0.6)
    composed = Compose(EarlyTom(frames=(7, 6)), alone)
    again = {}
    for m in (alone, composed):
        with m(model):
            forward(model, inputs)
        report = earlytom.last_report(model)
        assert report is not None
        again[m.name] = report
    size = family.tokens_per_frame
    assert [r.tokens_out for r in again.values()] == [8 * size, 6 * size]
    assert again["compose"].positions == "keep"
    one_more = 1 / (8 * size)  # FastV rounds up
    for report in again.values():
        assert 0.6 <= report.llm_retention < 0.6 + one_more


@pytest.mark.parametrize(
    "inner",
    [
        FastV(retention_ratio=0.3),
        FastV(retention_ratio=0.3, budget="behind"),
        PyramidDrop(retention_ratio=0.35, layers=(1, 2)),
        FrameFusion(retention_ratio=0.35),
    ],
    ids=lambda m: m.name,
)
def test_inner_ratio_behind_a_token_stage(model: nn.Module, family: Family, inner: Method) -> None:
    """The ratio stays that of the uncompressed video, below what FastV alone could reach."""
    inputs = family.inputs(PROMPTS["batch_padded"])
    total = 8 * family.tokens_per_frame
    with Compose(encoder=EarlyTom(), tokens=EVS(retention_ratio=0.5), inner=inner)(model):
        forward(model, inputs)
        report = earlytom.last_report(model)
        assert report is not None
        assert generate(model, inputs).shape[0] == 2
    assert report.tokens_out == total  # half of both rows
    assert report.layer_tokens[0] == total or isinstance(inner, FrameFusion)
    if getattr(inner, "budget", "layers") == "behind":
        assert report.layer_tokens[-1] == 2 * math.ceil(0.3 * total)
    else:
        assert inner.retention_ratio - 0.04 <= report.llm_retention
        assert report.llm_retention < inner.retention_ratio + 2 / total


def test_nothing_is_pruned_inside_where_few_tokens_enter(model: nn.Module, family: Family) -> None:
    inputs = family.inputs(PROMPTS["one_video"])
    few, exact = EVS(retention_ratio=0.25), FastV(retention_ratio=0.4)
    assert Compose(EarlyTom(), few, exact).inner_points(4) == ()
    logits = []
    for m in (Compose(EarlyTom(), few), Compose(EarlyTom(), few, exact)):
        with m(model):
            logits.append(forward(model, inputs).logits)
    assert torch.equal(*logits)
    # how many enter is not known in advance: the point is there, and passes all of them
    with Compose(EarlyTom(), EVS(policy="official", retention_ratio=0.25), exact)(model):
        forward(model, inputs)
    report = earlytom.last_report(model)
    assert report is not None
    assert report.layer_tokens == (report.tokens_out,) * 4
    with pytest.raises(ConfigError, match="fastv keeps at least"):
        FastV(retention_ratio=0.2).inner_points(4)
    assert Compose(EarlyTom(), few, FastV(retention_ratio=0.2)).inner_points(4)
