"""Weighted tokens: the logits equal those of a plain language model with an explicit float mask."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import earlytom
from earlytom import Compose
from earlytom.errors import UnsupportedModelError
from earlytom.hf.columns import VideoLayout
from earlytom.hf.weights import weighted_mask
from earlytom.method import Method
from earlytom.methods import FastV, VisionZip
from earlytom.models import find_adapter
from earlytom.stages import TokenSelection, VideoFeatures
from tests.families import PROMPTS, VIDEO, Family, build_llava_onevision, forward, generate


@dataclass(frozen=True, kw_only=True)
class Weighted(Method):
    """Every third token, with weights 1, 2, 3, 1, 2, 3 ..."""

    name = "weighted"
    positions: str = "keep"
    weighs: bool = True

    @property
    def weighs_tokens(self) -> bool:
        return self.weighs

    def select_tokens(self, video: VideoFeatures) -> TokenSelection:
        n = video.features.shape[0] * video.features.shape[1]
        index = torch.arange(0, n, 3)
        return TokenSelection(index, weight=(torch.arange(len(index)) % 3 + 1).float())


def reference(model: Any, family: Family, inputs: dict[str, Any]) -> Tensor:
    """Logits of the last column of a single prompt: columns dropped and weighted by hand."""
    seen: list[Tensor] = []
    spy = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"][0]), with_kwargs=True
    )
    with Weighted(weighs=False)(model):  # the spy came first: it sees the rows marked as dropped
        forward(model, inputs)
    spy.remove()
    x = seen[0]
    columns = (~x[:, 0].isnan()).nonzero().flatten()
    adapter = find_adapter(model)
    frames = adapter.frame_counts(inputs)
    shapes = [(t, adapter.grid) for t in frames]
    layout = VideoLayout.of(adapter, [adapter.placeholder_count([t]) for t in frames], shapes)
    patch, _ = layout.spread(inputs["input_ids"] == VIDEO)
    tokens = (patch[0, columns] >= 0).nonzero().flatten()
    per_video = len(range(0, family.frames * family.tokens_per_frame, 3))
    bias = torch.zeros(len(columns))
    bias[tokens] = (torch.arange(len(tokens)) % per_video % 3 + 1).log()
    low = torch.finfo(torch.float32).min
    mask = bias.expand(len(columns), -1).masked_fill(
        torch.ones(len(columns), len(columns)).triu(1).bool(), low
    )
    with torch.no_grad():
        out = model.model.language_model(
            inputs_embeds=x[columns][None],
            position_ids=columns[None],
            attention_mask=mask[None, None],
        )
        return model.lm_head(out.last_hidden_state[:, -1])


@pytest.mark.parametrize("prompt", ["one_video", "two_videos", "image_and_video"])
def test_logits_equal_an_explicit_mask(family: Family, model: nn.Module, prompt: str) -> None:
    inputs = family.inputs(PROMPTS[prompt])
    expected = reference(model, family, inputs)
    with Weighted()(model):
        found = forward(model, inputs).logits[:, -1]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    with Weighted(weighs=False)(model):
        assert not torch.allclose(forward(model, inputs).logits[:, -1], found, atol=1e-4)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_generation_equals_a_full_forward(family: Family, attn: str) -> None:
    model = build_llava_onevision(attn=attn) if family.name == "llava_onevision" else family.model()
    inputs = family.inputs(PROMPTS["batch_padded"])
    with Weighted()(model):
        out = generate(model, inputs, return_dict_in_generate=True, output_logits=True)
        full = dict(inputs)
        full["input_ids"] = out.sequences[:, :-1]
        ones = torch.ones(2, out.sequences.shape[1] - 1 - inputs["input_ids"].shape[1])
        full["attention_mask"] = torch.cat([inputs["attention_mask"], ones.long()], 1)
        again = forward(model, full).logits[:, -len(out.logits) :]
    torch.testing.assert_close(again, torch.stack(out.logits, 1), atol=3e-5, rtol=1e-4)


def test_beams_and_a_second_turn_keep_the_weights(family: Family, model: nn.Module) -> None:
    inputs = family.inputs(PROMPTS["one_video"])
    with Weighted()(model), torch.no_grad():
        one = forward(model, inputs, use_cache=True)
        more = torch.tensor([[5, 6, 7]])
        second = model(input_ids=more, past_key_values=one.past_key_values).logits
        whole = dict(inputs)
        whole["input_ids"] = torch.cat([inputs["input_ids"], more], 1)
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        expected = forward(model, whole).logits[:, -3:]
        torch.testing.assert_close(second, expected, atol=3e-5, rtol=1e-4)
        greedy = generate(model, inputs)
        beams = generate(model, inputs, num_beams=2, num_return_sequences=2)
        assert beams.shape[0] == 2
        assert greedy.shape == beams[:1].shape


def test_weights_reach_a_model_that_also_prunes_inside(family: Family, model: nn.Module) -> None:
    inputs = family.inputs(PROMPTS["one_video"])
    inner = FastV(retention_ratio=0.5, budget="behind")
    logits = []
    for weighs in (True, False):
        with Compose(encoder=Weighted(), tokens=Weighted(weighs=weighs), inner=inner)(model):
            logits.append(forward(model, inputs).logits[:, -1])
    assert logits[0].isfinite().all()
    assert not torch.allclose(*logits, atol=1e-4)


def test_methods_without_weights_pass_no_mask(family: Family, model: Any) -> None:
    seen: list[Any] = []
    handle = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs.get("attention_mask")), with_kwargs=True
    )
    with VisionZip(retention_ratio=0.3)(model):
        forward(model, family.inputs(PROMPTS["one_video"]))
    handle.remove()
    assert seen == [None]


def test_other_attention_counts_all_tokens_alike(
    family: Family, caplog: pytest.LogCaptureFixture
) -> None:
    model: Any = family.model()
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    with caplog.at_level(logging.WARNING, logger="earlytom"):
        earlytom.compress(model, Weighted())
    assert "counts all tokens alike" in caplog.text


def test_a_later_change_of_attention_is_refused(family: Family) -> None:
    model: Any = family.model()
    earlytom.compress(model, Weighted())
    model.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="needs sdpa or eager"):
        forward(model, family.inputs(PROMPTS["one_video"]))


def test_mask_by_hand() -> None:
    bias = torch.tensor([[0.0, 0.5, 0.0]])
    real = torch.tensor([[False, True, True]])
    mask = weighted_mask(bias, real, 1, 2, 4, torch.float32)
    low = torch.finfo(torch.float32).min
    assert mask.tolist() == [[[[low, 0.5, low, low], [low, 0.5, 0.0, low]]]]


def test_copies_of_a_prompt_with_two_videos_have_their_weights(
    family: Family, model: nn.Module
) -> None:
    if not hasattr(model, "_prepare_multimodal_encoder_kwargs_for_generation"):
        pytest.skip("transformers before 5.18 mixes up the videos of such copies")
    inputs = family.inputs(PROMPTS["batch_mixed"])
    kw: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
    with Weighted()(model):
        one = generate(model, inputs, **kw).logits[0]
        many = generate(model, inputs, do_sample=True, num_return_sequences=2, **kw).logits[0]
    torch.testing.assert_close(many, one.repeat_interleave(2, 0), atol=2e-5, rtol=1e-4)
