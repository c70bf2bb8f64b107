"""What users get wrong: every case is one typed line, and the model stays usable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import earlytom
from earlytom import ConfigError, EarlyTom, UnsupportedModelError, VideoError
from tests.families import PROMPTS, Family, forward, generate
from tests.toys import TOYS, Toy

FAMILY = Family("llava_onevision")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return FAMILY.model()


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), None, "model", object()])
def test_unsupported_objects(thing: Any) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        earlytom.compress(thing, TOYS["select"])
    assert "\n" not in str(error.value)


def test_text_model_names_what_is_supported() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=32,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"'qwen2' is not supported.*llava_onevision"):
        earlytom.compress(Qwen2ForCausalLM(config), TOYS["select"])


def test_not_a_method(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="EarlyTom"):
        earlytom.compress(model, "earlytom")


@pytest.mark.parametrize(
    ("method", "match"),
    [
        (Toy(merge_layers=(1, 6)), r"encoder layer 6 .* -1\.\.5"),
        (Toy(score=6), r"encoder layer 6 .* 0\.\.5"),
        (Toy(inner=4), r"inner layer 4 .* 1\.\.3"),
        (Toy(inner=0), r"inner layer 0 .* 1\.\.3"),
    ],
)
def test_layers_out_of_range(model: nn.Module, method: Toy, match: str) -> None:
    before = forward(model, FAMILY.inputs(PROMPTS["one_video"])).logits
    with pytest.raises(ConfigError, match=match):
        earlytom.compress(model, method)
    assert torch.equal(forward(model, FAMILY.inputs(PROMPTS["one_video"])).logits, before)


def test_failed_replacement_keeps_the_method_that_is_on(model: nn.Module) -> None:
    inputs = FAMILY.inputs(PROMPTS["one_video"])
    with TOYS["select"](model):
        expected = forward(model, inputs).logits
        with pytest.raises(ConfigError):
            earlytom.compress(model, Toy(merge_layers=(99,)))
        assert torch.equal(forward(model, inputs).logits, expected)


@pytest.mark.parametrize("run", [forward, generate])
def test_placeholders_that_do_not_fit_the_video(model: nn.Module, run: Any) -> None:
    inputs = FAMILY.inputs(PROMPTS["one_video"])
    inputs["input_ids"] = inputs["input_ids"].clone()
    inputs["input_ids"][0, 20] = 5
    with TOYS["select"](model), pytest.raises(VideoError, match=r"holds 72 .* need 73"):
        run(model, inputs)


def test_wrong_pixel_shape(model: nn.Module) -> None:
    inputs = FAMILY.inputs(PROMPTS["one_video"])
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"][0]
    with TOYS["select"](model), pytest.raises(VideoError, match=r"\[videos, frames"):
        forward(model, inputs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite(model: nn.Module, bad: float) -> None:
    inputs = FAMILY.inputs(PROMPTS["one_video"])
    inputs["pixel_values_videos"][0, 3, 0, 10, 10] = bad
    method = EarlyTom(retention_ratio=0.25)
    with method(model), pytest.raises(VideoError, match="NaN or infinite"):
        forward(model, inputs)
    good = FAMILY.inputs(PROMPTS["one_video"])
    with method(model):
        assert forward(model, good).logits.isfinite().all()


def test_several_feature_layers_cannot_be_merged() -> None:
    model = FAMILY.model()
    model.config.vision_feature_layer = [-2, -1]
    with pytest.raises(UnsupportedModelError, match="several layers"):
        earlytom.compress(model, TOYS["merge"])


def test_last_report_is_none_before_any_call() -> None:
    assert earlytom.last_report(FAMILY.model()) is None
