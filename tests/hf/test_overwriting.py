"""Merging writes over states of the encoder, where nobody else reads them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from earlytom.models import find_adapter
from earlytom.ops.plan import MergePlan
from tests.families import FAMILIES, PROMPTS, forward
from tests.matrix import METHODS

LLAVA = FAMILIES[0]
METHOD = METHODS["earlytom-budget"]


@pytest.fixture(scope="module")
def model() -> Any:
    return LLAVA.model()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether merges were allowed to overwrite, one after the other."""
    found: list[bool] = []
    original = MergePlan.apply

    def spy(self: MergePlan, x: Tensor, overwrite: bool = False) -> Tensor:
        if x.dim() == 3:  # hidden states, not signals
            found.append(overwrite)
        return original(self, x, overwrite)

    monkeypatch.setattr(MergePlan, "apply", spy)
    return found


@pytest.mark.parametrize("prompt", ["one_video", "batch_mixed"])
def test_where_nobody_looks(model: nn.Module, prompt: str, asked: list[bool]) -> None:
    inputs = LLAVA.inputs(PROMPTS[prompt])
    with METHOD(model):
        logits = forward(model, inputs).logits
        assert asked
        assert all(asked)
        asked.clear()
        handle = find_adapter(model).layers[0].register_forward_hook(lambda *_: None)
        plain = forward(model, inputs).logits
        handle.remove()
    assert asked
    assert not any(asked)
    assert torch.equal(plain, logits)


def test_what_a_hook_holds_on_to_stays(model: nn.Module) -> None:
    inputs, held = LLAVA.inputs(PROMPTS["one_video"]), []

    def hold(module: nn.Module, args: Any, output: Any) -> None:
        held.append((output, output.clone()))

    handles = [x.register_forward_hook(hold) for x in find_adapter(model).layers]
    with METHOD(model):
        forward(model, inputs)
    for handle in handles:
        handle.remove()
    assert held
    for output, copy in held:
        assert torch.equal(output, copy)


@pytest.mark.parametrize("ask", [{"output_hidden_states": True}, {"vision_feature_layer": -2}])
def test_what_the_caller_asks_for_stays(model: Any, ask: dict[str, Any], asked: list[bool]) -> None:
    pixels = LLAVA.inputs(PROMPTS["one_video"])["pixel_values_videos"]
    with torch.no_grad(), METHOD(model):
        model.get_video_features(pixels, **ask)
    assert asked
    assert not any(asked)


def test_what_the_backward_pass_needs_stays(model: nn.Module, asked: list[bool]) -> None:
    with METHOD(model), torch.enable_grad():
        model(**LLAVA.inputs(PROMPTS["one_video"])).logits.sum().backward()
    assert asked
    assert not any(asked)
    model.zero_grad()
