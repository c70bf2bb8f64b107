"""Compiled encoders on and off, on models that change, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import earlytom
from earlytom import ConfigError, EarlyTom, UnsupportedModelError
from earlytom.hf.engine import controller_of
from earlytom.method import Method
from earlytom.methods import FastVID
from earlytom.models import find_adapter
from tests.compiled import BUDGET, FAMILY, SMALL, features, small_model
from tests.families import (
    FRAMES,
    PROMPTS,
    forward,
)
from tests.matrix import METHODS

pytestmark = pytest.mark.usefixtures("fresh_compiler")


# ---------------------------------------------------------------------- on, off, and changes
def test_restore_leaves_no_trace() -> None:
    model, inputs = small_model(), FAMILY.inputs(PROMPTS["one_video"])
    tower = find_adapter(model).tower
    plain = forward(model, inputs).logits  # transformers puts its own hooks on here
    before = [(n, sorted(m.__dict__), len(m._forward_hooks)) for n, m in model.named_modules()]
    keys = list(model.state_dict())
    earlytom.compile(model, SMALL, FRAMES, backend="eager")
    assert "forward" in tower.__dict__
    assert not torch.equal(forward(model, inputs).logits, plain)
    assert list(model.state_dict()) == keys
    earlytom.restore(model)
    after = [(n, sorted(m.__dict__), len(m._forward_hooks)) for n, m in model.named_modules()]
    assert after == before
    assert torch.equal(forward(model, inputs).logits, plain)


def test_restore_leaves_a_forward_of_somebody_else() -> None:
    model, inputs = small_model(), FAMILY.inputs(PROMPTS["one_video"])
    tower = find_adapter(model).tower
    plain = forward(model, inputs).logits
    earlytom.compile(model, SMALL, FRAMES, backend="eager")
    ours, calls = tower.forward, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return ours(*args, **kwargs)

    tower.forward = counted  # type: ignore[method-assign]
    earlytom.restore(model)
    assert tower.forward is counted
    assert torch.equal(forward(model, inputs).logits, plain)
    assert len(calls) == 1


def test_another_method_in_between_keeps_the_graphs(ran: list[tuple[int, int]]) -> None:
    model = small_model()
    pixels = FAMILY.inputs(PROMPTS["one_video"])["pixel_values_videos"]
    earlytom.compile(model, SMALL, FRAMES, backend="eager")
    expected = features(model, pixels)
    graphs = controller_of(model).compiled._compiled  # type: ignore[union-attr]
    assert len(graphs) == 1
    with EarlyTom(retention_ratio=0.5, merge_layers=())(model):
        assert not torch.equal(features(model, pixels), expected)
    assert ran == [(FRAMES, 1)]
    assert torch.equal(features(model, pixels), expected)
    assert controller_of(model).compiled._compiled is graphs  # type: ignore[union-attr]
    assert len(graphs) == 1
    assert ran == [(FRAMES, 1)] * 2
    earlytom.compress(model, SMALL)  # the last verb decides
    assert torch.equal(features(model, pixels), expected)
    assert len(ran) == 2
    earlytom.compile(model, SMALL, FRAMES, backend="eager")
    earlytom.compile(model, SMALL, FRAMES, backend="eager")
    assert torch.equal(features(model, pixels), expected)
    assert len(ran) == 3
    earlytom.restore(model)
    assert "forward" not in find_adapter(model).tower.__dict__


def test_changes_of_the_model_are_seen() -> None:
    model = small_model()
    adapter = find_adapter(model)
    pixels = FAMILY.inputs(PROMPTS["one_video"])["pixel_values_videos"]
    earlytom.compile(model, SMALL, FRAMES, backend="eager")
    seen = [features(model, pixels)]

    def changed() -> None:
        """The compiled encoder follows the change, and agrees with the engine about it."""
        seen.append(features(model, pixels))
        assert not torch.equal(seen[-1], seen[-2])
        settings = controller_of(model).compiled.settings  # type: ignore[union-attr]
        earlytom.compress(model, SMALL)
        assert torch.equal(features(model, pixels), seen[-1])
        earlytom.compile(model, SMALL, settings.frames, backend="eager")

    with torch.no_grad():
        adapter.layers[1].mlp.fc1.weight.add_(0.1)  # type: ignore[union-attr]
    changed()
    weights = {k: v * 1.01 for k, v in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    changed()
    features(model, pixels)
    layer: Any = adapter.layers[1].mlp
    layer.fc1 = nn.Sequential(layer.fc1, nn.Hardtanh(-0.1, 0.1))  # as PEFT puts adapters in
    changed()
    features(model, pixels)
    model.set_attn_implementation("eager")  # type: ignore[operator]
    changed()


def test_a_copy_of_the_model_has_graphs_of_its_own() -> None:
    model = small_model()
    pixels = FAMILY.inputs(PROMPTS["one_video"])["pixel_values_videos"]
    earlytom.compile(model, SMALL, FRAMES, backend="eager")
    expected = features(model, pixels)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        find_adapter(twin).layers[1].mlp.fc1.weight.add_(0.1)  # type: ignore[union-attr]
    assert not torch.equal(features(twin, pixels), expected)
    assert torch.equal(features(model, pixels), expected)


def test_more_variants_than_the_compiler_remembers_per_function() -> None:
    """All graphs share one function of ours; the compiler's limit must not add them up."""
    model = small_model()
    pixels = FAMILY.inputs(PROMPTS["one_video"])["pixel_values_videos"]
    with torch._dynamo.config.patch(recompile_limit=2):
        for t in (1, 2, 3):
            expected = features(model, pixels[:, :t])  # of so many frames, nothing is compiled yet
            earlytom.compile(model, frames=t, backend="eager")
            assert torch.equal(features(model, pixels[:, :t]), expected)


# ---------------------------------------------------------------------- refusals
def refused(method: Method) -> str | None:
    """Why a method cannot be compiled, in the words of the message."""
    if method.reduce_layers(6) or method.encoder_grid((3, 3)):
        return "changes patches"
    if method.reuse_layer(6) is not None:
        return "computes a number of patches"
    merges = method.merge_points(6) and method.fixed_merges(FRAMES, 9, 6) is None
    return "decides frames" if merges else None


REFUSED = {k: why for k, m in METHODS.items() if (why := refused(m)) is not None}


def test_what_the_matrix_covers() -> None:
    assert REFUSED["tome"] == REFUSED["resize"] == "changes patches"
    assert REFUSED["afterimage"] == "computes a number of patches"
    assert REFUSED["earlytom-official"] == REFUSED["earlytom-paper"] == "decides frames"
    allowed = {"earlytom-budget", "earlytom-global", "visionzip", "fastv", "dycoke-decode"}
    assert not allowed & set(REFUSED)


@pytest.mark.parametrize("kind", ["refused", "allowed"])
def test_which_methods_of_the_matrix_are_refused_and_why(kind: str) -> None:
    model = FAMILY.model()
    for name, method in METHODS.items():
        if kind == "allowed" and name not in REFUSED:
            earlytom.compile(model, method, FRAMES)
            assert earlytom.active_method(model) is method
            earlytom.restore(model)
        elif kind == "refused" and name in REFUSED:
            with pytest.raises(ConfigError, match=f"{method.name} {REFUSED[name]}.*allowed: Early"):
                earlytom.compile(model, method, FRAMES)
            assert earlytom.active_method(model) is None


def test_decoupled_selection_is_refused_only_behind_merges() -> None:
    model = FAMILY.model()
    with pytest.raises(ConfigError, match="any selection but decoupled"):
        earlytom.compile(model, EarlyTom(selection="decoupled"), FRAMES)
    earlytom.compile(model, EarlyTom(selection="decoupled", merge_layers=()), FRAMES)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "frames must be an integer >= 1"),
        ({"frames": ()}, "at least one number of frames"),
        ({"frames": (8, 2.5)}, "frames must be an integer >= 1"),
        ({"backend": "tensorrtt"}, "backend must be one of .*inductor"),
        ({"backend": 3}, "a name or a callable"),
        ({"mode": "fast"}, "mode must be one of default, reduce-overhead"),
        ({"frames": 4}, r"frames=\(6, 3\) asks for 6 frames"),
        ({"method": "earlytom"}, "expected a method"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    model = FAMILY.model()
    with pytest.raises(ConfigError, match=message):
        earlytom.compile(model, **{"method": BUDGET, "frames": FRAMES, **settings})
    assert earlytom.active_method(model) is None


def test_encoders_that_cannot_be_compiled_are_refused() -> None:
    model = FAMILY.model()
    adapter = find_adapter(model)
    with pytest.raises(UnsupportedModelError, match="not supported"):
        earlytom.compile(nn.Linear(2, 2), BUDGET, FRAMES)
    handle = adapter.layers[1].register_forward_hook(lambda module, args, out: out)
    with pytest.raises(UnsupportedModelError, match=r"encoder.layers.1 has a hook"):
        earlytom.compile(model, BUDGET, FRAMES)
    handle.remove()
    layer = adapter.layers[0]
    layer.forward = layer.forward  # what accelerate does to a model on several devices
    with pytest.raises(UnsupportedModelError, match=r"encoder.layers.0 has a hook or forward"):
        earlytom.compile(model, BUDGET, FRAMES)
    del layer.forward
    adapter.tower.config.model_type = "clip_vision_model"  # type: ignore[union-attr]
    with pytest.raises(UnsupportedModelError, match=r"clip_vision_model.*supported: siglip"):
        earlytom.compile(model, BUDGET, FRAMES)


def test_signals_of_a_pooling_head_are_refused() -> None:
    model = small_model(vision_use_head=True)
    assert find_adapter(model).pooling_head is not None
    with pytest.raises(ConfigError, match="fastvid needs the encoder's pooling head"):
        earlytom.compile(model, FastVID(retention_ratio=0.25), FRAMES)
