"""Signals of an attention-pooling head, where the encoder has one (FastVID)."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import earlytom
from earlytom import Compose, EarlyTom
from earlytom.methods import EVS, Afterimage, FastVID, ToMe
from earlytom.models import find_adapter
from earlytom.stages import TokenSelection, VideoFeatures
from tests.families import PROMPTS, forward, generate, llava_config, llava_inputs, randomise


@dataclass(frozen=True, kw_only=True)
class Spy(FastVID):
    """FastVID that keeps what it saw."""

    seen: list[VideoFeatures] = field(default_factory=list, compare=False)

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        self.seen.append(video)
        return super().select_tokens(video)


class Deaf(FastVID):
    """FastVID that does not ask for the head."""

    def needs_head(self) -> bool:
        return False


@pytest.fixture(scope="module")
def model() -> nn.Module:
    from transformers import LlavaOnevisionForConditionalGeneration

    torch.manual_seed(0)
    config = llava_config()
    config.vision_config.vision_use_head = True
    built = LlavaOnevisionForConditionalGeneration._from_config(config).eval()
    randomise(built)
    return built


def expected(model: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors and pooled probe attention of all frames, from the tower alone."""
    adapter = find_adapter(model)
    head = adapter.pooling_head
    assert head is not None
    found = []

    def note(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        hidden = args[0]
        query = module.probe.expand(len(hidden), -1, -1)
        found.append((output, module.attention(query, hidden, hidden)[1][:, 0]))

    handle = head.register_forward_hook(note)
    with torch.no_grad():
        adapter.tower(pixels.flatten(0, 1))
        handle.remove()
        ((vectors, attention),) = found
        return vectors, adapter.pool(attention[..., None])[..., 0]


def test_vectors_and_attention_of_every_video(model: nn.Module) -> None:
    inputs = llava_inputs(PROMPTS["two_videos"])
    vectors, attention = expected(model, inputs["pixel_values_videos"])
    spy = Spy(retention_ratio=0.3)
    with spy(model):
        forward(model, inputs)
    assert len(spy.seen) == 2
    for v, video in enumerate(spy.seen):
        assert video.frame_vectors is not None
        assert video.probe is not None
        torch.testing.assert_close(video.frame_vectors, vectors[8 * v : 8 * v + 8])
        torch.testing.assert_close(video.probe, attention[8 * v : 8 * v + 8])


def test_signals_are_merged_with_the_frames(model: nn.Module) -> None:
    inputs = llava_inputs(PROMPTS["one_video"])
    for layers in ((1, 3), (1, 5)):  # the last merges behind the head
        spy = Spy(retention_ratio=0.3)
        stage = EarlyTom(merge_layers=layers, frames=(6, 5), fuse="average")
        with Compose(stage, spy)(model):
            forward(model, inputs)
        (video,) = spy.seen
        assert video.features.shape[0] == 5
        assert video.frame_vectors is not None
        assert video.frame_vectors.shape == (5, 64)
        assert video.probe is not None
        assert video.probe.shape == (5, 9)
        state = video.state
        assert state.vectors is not None
        torch.testing.assert_close(state.probe.sum(1), torch.ones(5))


def test_patches_reused_or_reduced_in_the_encoder(model: nn.Module) -> None:
    """The head's vectors are of whole frames; its attention is spread over all patches."""
    inputs = llava_inputs(PROMPTS["two_videos"])
    vectors, attention = expected(model, inputs["pixel_values_videos"])
    for stage in (Afterimage(encoder_budget=1.0), Afterimage(), ToMe(retention_ratio=0.5)):
        spy = Spy(retention_ratio=0.3)
        with Compose(stage, spy)(model):
            forward(model, inputs)
        for v, video in enumerate(spy.seen):
            assert video.frame_vectors is not None
            assert video.probe is not None
            assert video.frame_vectors.shape == (8, 64)
            assert video.probe.shape == (8, 9)
            if stage == Afterimage(encoder_budget=1.0):
                part = slice(8 * v, 8 * v + 8)
                torch.testing.assert_close(video.frame_vectors, vectors[part])
                torch.testing.assert_close(video.probe, attention[part])


def test_with_a_head_it_decides_otherwise(model: nn.Module) -> None:
    """The head's signals change the choice; a method that does not ask never gets them."""
    inputs = llava_inputs(PROMPTS["one_video"])
    places = []
    for method in (FastVID(retention_ratio=0.3), Deaf(retention_ratio=0.3)):
        with method(model):
            forward(model, inputs)
        report = earlytom.last_report(model)
        assert report is not None
        places.append(report.videos[0].index)
    assert not torch.equal(places[0], places[1])


def test_half_precision_generation_and_restore(model: nn.Module) -> None:
    inputs = llava_inputs(PROMPTS["batch_padded"])
    before = forward(model, inputs).logits
    with FastVID(retention_ratio=0.3)(model):
        assert not torch.equal(forward(model, inputs).logits, before)
        assert generate(model, inputs).shape[0] == 2
    assert torch.equal(forward(model, inputs).logits, before)
    head = find_adapter(model).pooling_head
    assert head is not None
    assert not head._forward_hooks
    with EVS()(model):
        assert not head._forward_hooks, "only for methods that ask"
    half = type(model)(model.config).eval().to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    with FastVID(retention_ratio=0.3)(half):
        logits = forward(half, llava_inputs(PROMPTS["one_video"], dtype=torch.bfloat16)).logits
    assert logits.isfinite().all()
