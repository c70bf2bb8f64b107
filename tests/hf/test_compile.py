"""The compiled encoder gives what the engine gives, and steps aside where it cannot."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from torch import Tensor

import earlytom
from earlytom import Compose, EarlyTom, UnsupportedModelError, VideoError
from earlytom.hf.engine import controller_of
from earlytom.method import Method
from earlytom.methods import HoliTom, VisionZip
from earlytom.models import find_adapter
from tests.compiled import BUDGET, FAMILY, SMALL, compare, features, small_model
from tests.families import (
    FAMILIES,
    FRAMES,
    PROMPTS,
    forward,
    generate,
)

pytestmark = pytest.mark.usefixtures("fresh_compiler")


# ---------------------------------------------------------------------- the same results
@pytest.mark.parametrize("name", ["llava_onevision", "llava_video"])
def test_both_layouts_with_several_videos_are_bit_equal(
    name: str, ran: list[tuple[int, int]]
) -> None:
    family = next(f for f in FAMILIES if f.name == name)
    model = family.model()
    inputs = family.inputs(PROMPTS["batch_mixed"])
    assert compare(model, BUDGET, inputs) == 0.0
    tokens = generate(model, inputs)
    assert set(ran) == {(FRAMES, 3)}
    earlytom.compress(model, BUDGET)
    assert torch.equal(tokens, generate(model, inputs))


@pytest.mark.parametrize(
    "method",
    [
        EarlyTom(retention_ratio=0.1, frame_similarity="worst", worst_share=0.3),
        EarlyTom(retention_ratio=0.25, merge_layers=(5,), frames=(4,)),  # behind the last layer
        EarlyTom(retention_ratio=0.25, merge_layers=(-1, 2), frames=(6, 4)),
        EarlyTom(retention_ratio=0.25, selection="global", merge_layers=(1, 3), frames=(6, 4)),
        EarlyTom(retention_ratio=0.25, merge_layers=(0, 2), frames=(8, 2), positions="respace"),
        # attention between two merges, keys
        Compose(BUDGET, VisionZip(retention_ratio=0.3)),
        Compose(EarlyTom(frames=(3,), merge_layers=(1,)), HoliTom(retention_ratio=0.3)),
    ],
    ids=lambda m: f"{m.name}-{getattr(m, 'selection', '')}",
)
def test_a_method_is_bit_equal(method: Method, ran: list[tuple[int, int]]) -> None:
    assert compare(FAMILY.model(), method, FAMILY.inputs(PROMPTS["one_video"])) == 0.0
    assert ran == [(FRAMES, 1)]


@pytest.mark.parametrize("videos", [1, 2])
def test_aot_eager_is_bit_equal(videos: int, ran: list[tuple[int, int]]) -> None:
    inputs = FAMILY.inputs([["t2", *["v"] * videos, "t3"]])
    assert compare(FAMILY.model(), BUDGET, inputs, backend="aot_eager") == 0.0
    assert ran == [(FRAMES, videos)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor_rounds_differently_and_decides_alike(dtype: torch.dtype) -> None:
    model = FAMILY.model(dtype)
    inputs = FAMILY.inputs(PROMPTS["two_videos"], dtype=dtype)
    difference = compare(model, BUDGET, inputs, backend="inductor")
    assert difference < (2e-5 if dtype == torch.float32 else 0.1)


def test_the_plain_encoder(ran: list[tuple[int, int]]) -> None:
    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS["one_video"])
    plain = forward(model, inputs).logits
    earlytom.compile(model, frames=FRAMES, backend="eager")
    assert torch.equal(forward(model, inputs).logits, plain)
    assert ran == [(FRAMES, 1)]
    report = earlytom.last_report(model)
    assert report is not None
    assert report.tokens_out == FRAMES * 9


def test_the_shipped_model(ran: list[tuple[int, int]]) -> None:
    from earlytom.pipeline.loading import load_model, shipped_model

    model = load_model(shipped_model(), device="cpu")
    vision = model.config.vision_config
    g = torch.Generator().manual_seed(0)
    scenes = torch.randn(2, 3, vision.image_size, vision.image_size, generator=g)
    pixels = scenes[[0] * 9 + [1] * 7][None] + 0.1 * torch.randn(
        1, 16, 3, vision.image_size, vision.image_size, generator=g
    )
    method = EarlyTom(retention_ratio=0.1)
    results = []
    for verb in (earlytom.compress, earlytom.compile):
        settings = {"frames": 16, "backend": "eager"} if verb is earlytom.compile else {}
        verb(model, method, **settings)
        with torch.no_grad():
            out = find_adapter(model).inner.get_video_features(pixels)  # type: ignore[operator]
        rows = out if isinstance(out, Tensor) else out.pooler_output
        results.append((rows, controller_of(model).vision.reports[0]))  # type: ignore[union-attr]
    (engine, before), (graph, after) = results
    assert torch.equal(engine.nan_to_num(7.0), graph.nan_to_num(7.0))
    assert before.plans == after.plans
    assert after.frames_out < 16
    assert ran == [(16, 1)]


def test_gradients_flow_as_without_compilation() -> None:
    model, inputs = small_model(), FAMILY.inputs(PROMPTS["one_video"])
    weight = model.model.vision_tower.encoder.layers[0].mlp.fc1.weight  # type: ignore[union-attr,index]
    grads = []
    for verb in (earlytom.compress, earlytom.compile):
        settings = {"frames": FRAMES, "backend": "aot_eager"} if verb is earlytom.compile else {}
        verb(model, SMALL, **settings)
        model.zero_grad()
        model(**inputs).logits.square().mean().backward()
        grads.append(weight.grad.clone())
    torch.testing.assert_close(*grads)
    assert grads[0].abs().max() > 0


# ---------------------------------------------------------------------- fallbacks
def test_other_frame_counts_run_on_the_engine(
    ran: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model()
    method = EarlyTom(retention_ratio=0.25, merge_layers=(0,))
    pixels = FAMILY.inputs(PROMPTS["one_video"])["pixel_values_videos"]
    earlytom.compress(model, method)
    expected = {t: features(model, pixels[:, :t]) for t in (4, 6, 8)}
    earlytom.compile(model, method, frames=(8, 4), backend="eager")
    with caplog.at_level(logging.DEBUG, logger="earlytom"):
        for t, rows in expected.items():
            assert torch.equal(features(model, pixels[:, :t]), rows), t
    assert ran == [(4, 1), (8, 1)]
    lines = [r.getMessage() for r in caplog.records if "uncompiled" in r.getMessage()]
    assert lines == ["the encoder runs uncompiled: videos of [6] frames, compiled for 8, 4"]


def test_unusual_calls_run_on_the_engine(
    ran: list[tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    model = small_model()
    pixels = FAMILY.inputs(PROMPTS["one_video"])["pixel_values_videos"]
    earlytom.compress(model, SMALL)
    expected = features(model, pixels)
    earlytom.compile(model, SMALL, FRAMES, backend="eager")
    caplog.set_level(logging.DEBUG, logger="earlytom.hf.compiled")
    assert torch.equal(features(model, pixels, output_hidden_states=True), expected)
    with pytest.raises(UnsupportedModelError, match="in front of a merge layer"):
        features(model, pixels, vision_feature_layer=-2)  # as the engine says
    handle = (
        find_adapter(model)
        .layers[1]
        .mlp.register_forward_hook(  # type: ignore[union-attr]
            lambda module, args, out: out * 2
        )
    )
    assert not torch.equal(features(model, pixels), expected)  # the hook counts
    handle.remove()
    model.train()
    features(model, pixels)
    model.eval()
    assert ran == []
    assert [r.getMessage().partition(": ")[2].split(" (")[0] for r in caplog.records] == [
        "the call asks for all hidden states",
        "the call asks for vision_feature_layer=-2",
        "encoder.layers.1.mlp of the encoder has a hook or forward of its own",
        "the encoder is in training mode",
    ]
    assert torch.equal(features(model, pixels), expected)
    assert ran == [(FRAMES, 1)]


def test_images_and_text_are_untouched(ran: list[tuple[int, int]]) -> None:
    model = small_model()
    for prompt in ("image_only", "text_only"):
        inputs = FAMILY.inputs(PROMPTS[prompt])
        plain = forward(model, inputs).logits
        earlytom.compile(model, SMALL, FRAMES, backend="eager")
        assert torch.equal(forward(model, inputs).logits, plain)
        earlytom.restore(model)
    assert ran == []


def test_broken_videos_raise_as_without_compilation() -> None:
    model, inputs = small_model(), FAMILY.inputs(PROMPTS["two_videos"])
    inputs["pixel_values_videos"][1, 3] = float("nan")
    messages = []
    for verb, settings in ((earlytom.compress, {}), (earlytom.compile, {"backend": "eager"})):
        verb(model, SMALL, **({"frames": FRAMES, **settings} if settings else {}))
        with pytest.raises(VideoError) as error:
            forward(model, inputs)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
