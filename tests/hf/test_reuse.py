"""Patch reuse inside the encoder: packed layers equal a full encoder whose stale patches copy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import earlytom
from earlytom.errors import ConfigError, VideoError
from earlytom.hf.reuse import FreshPatches
from earlytom.method import Method
from earlytom.methods import Afterimage, VisionZip
from earlytom.ops.fresh import changed_patches
from tests.families import PROMPTS, build_llava_onevision, forward, llava_inputs

KEEP_TOKENS = Afterimage(retention_ratio=1.0, encoder_budget=0.5)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_llava_onevision()


def features(model: Any, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        out = model.model.get_video_features(inputs["pixel_values_videos"])
    return out if isinstance(out, Tensor) else out.pooler_output


def copying_encoder(model: Any, method: Afterimage, inputs: dict[str, Any]) -> Tensor:
    """The same in plain code: full layers, after each of which stale patches copy their source."""
    adapter_layers = model.model.vision_tower.encoder.layers
    n_layers, rows = len(adapter_layers), []
    first = method.reuse_layer(n_layers)
    assert first is not None
    sources: list[Tensor] = []

    def copy_stale(x: Tensor) -> Tensor:
        split = x.split([len(s) for s in sources])
        return torch.cat(
            [v[s, torch.arange(v.shape[1])] for v, s in zip(split, sources, strict=True)]
        )

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        for x in args[0].split(inputs["pixel_values_videos"].shape[1]):
            fresh = changed_patches(x, method.fresh_count(*x.shape[:2], n_layers))
            frame = torch.arange(len(x))[:, None].expand(fresh.shape)
            sources.append(torch.where(fresh, frame, -1).cummax(0).values)
            rows.append(int(fresh.sum()))
        return (copy_stale(args[0]), *args[1:]), kwargs

    handles = [adapter_layers[first].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [
        layer.register_forward_hook(lambda m, a, out: copy_stale(out))
        for layer in adapter_layers[first:]
    ]
    try:
        return features(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("budget", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("layer", [0, 1, 4])
def test_equals_a_full_encoder_whose_stale_patches_copy(
    attn: str, budget: float, layer: int
) -> None:
    model = build_llava_onevision(attn=attn)
    if layer / 6 >= budget:
        pytest.skip("refused, see below")
    method = replace(KEEP_TOKENS, encoder_budget=budget, layer=layer)
    inputs = llava_inputs(PROMPTS["two_videos"])
    expected = copying_encoder(model, method, inputs)
    plain = features(model, inputs)
    with method(model):
        found = features(model, inputs)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_everything_fresh_is_the_full_encoder(model: nn.Module) -> None:
    @dataclass(frozen=True, kw_only=True)
    class AllFresh(Afterimage):
        def fresh_count(self, n_frames: int, patches: int, n_layers: int) -> int:
            return n_frames * patches

    inputs = llava_inputs(PROMPTS["one_video"])
    plain = features(model, inputs)
    with AllFresh(retention_ratio=1.0)(model):
        torch.testing.assert_close(features(model, inputs), plain, atol=2e-5, rtol=1e-4)


def test_a_still_video_costs_one_frame_and_changes_nothing(model: nn.Module) -> None:
    inputs = llava_inputs(PROMPTS["one_video"])
    inputs["pixel_values_videos"][:] = inputs["pixel_values_videos"][:, :1]
    plain = forward(model, inputs).logits
    with replace(KEEP_TOKENS, encoder_budget=0.25)(model):
        torch.testing.assert_close(forward(model, inputs).logits, plain, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8])
def test_encoder_work_follows_the_budget(model: Any, budget: float) -> None:
    """Projections and MLPs shrink exactly; attention pads its queries by at most a third."""
    inputs = llava_inputs(PROMPTS["one_video"])

    def work() -> int:
        with FlopCounterMode(display=False) as counter:
            features(model, inputs)
        layers = counter.get_flop_counts()["Global"]
        return sum(n for op, n in layers.items() if "mm" in str(op))

    full = work()
    with replace(KEEP_TOKENS, encoder_budget=budget)(model):
        assert work() / full == pytest.approx(budget, abs=0.12)


def test_images_are_untouched(model: nn.Module) -> None:
    inputs = llava_inputs(PROMPTS["image_only"])
    plain = forward(model, inputs).logits
    with KEEP_TOKENS(model):
        assert torch.equal(forward(model, inputs).logits, plain)


def test_received_attention_counts_reused_patches(model: nn.Module) -> None:
    """Signals of a packed layer are those of whole frames."""
    inputs = llava_inputs(PROMPTS["one_video"])
    inputs["pixel_values_videos"][:] = inputs["pixel_values_videos"][:, :1]  # reuse is exact here
    tokens = VisionZip(retention_ratio=0.3)
    with tokens(model):
        plain = forward(model, inputs).logits
    with earlytom.Compose(Afterimage(encoder_budget=0.4), tokens)(model):
        torch.testing.assert_close(forward(model, inputs).logits, plain, atol=2e-5, rtol=1e-4)


def test_attention_plan_places_every_query() -> None:
    g = torch.Generator().manual_seed(0)
    fresh = torch.rand(7, 11, generator=g) < torch.linspace(0.05, 0.9, 7)[:, None]
    fresh[0], fresh[3] = True, False
    plan = FreshPatches.build(fresh)
    hidden = torch.randn(7, 11, 4, generator=g)
    packed = plan.pack(hidden, fresh)
    assert packed.shape == (1, int(fresh.sum()), 4)
    unpacked = plan.unpack(packed)
    assert torch.equal(unpacked[fresh], hidden[fresh])
    assert torch.equal(unpacked[3], unpacked[2]), "a frame without fresh patches shows the last one"
    assert sum(q.shape[0] for _, q in plan.groups) == 6
    query = packed.view(1, -1, 2, 2).transpose(1, 2)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None]:
        return q.transpose(1, 2) + v.mean(2)[:, None], None

    out = plan.attend(attend, query, query, query)[0].flatten(2)
    assert torch.allclose(out, plan.pack(hidden + unpacked.mean(1, keepdim=True), fresh), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_budget": 0.1}, "cannot be met: 1 of 6"),
        ({"encoder_budget": 0.5, "layer": 6}, "out of range"),
        ({"encoder_budget": 0}, "encoder_budget must be"),
        ({"layer": -1}, "layer must be"),
        ({"even_share": 1.5}, "even_share must be"),
        ({"time_weight": float("nan")}, "time_weight must be"),
        ({"ridge": 0}, "ridge must be"),
        ({"blend": -0.1}, "blend must be"),
    ],
)
def test_bad_settings(model: nn.Module, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        earlytom.compress(model, Afterimage(**settings))


def test_reuse_goes_with_no_other_encoder_stage(model: nn.Module) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Both(Afterimage):
        def merge_points(self, n_layers: int) -> tuple[int, ...]:
            return (1,)

    with pytest.raises(ConfigError, match="only one is possible"):
        earlytom.compress(model, Both())


def test_not_finite_states_are_refused(model: nn.Module) -> None:
    inputs = llava_inputs(PROMPTS["one_video"])
    inputs["pixel_values_videos"][0, 3] = float("nan")
    with KEEP_TOKENS(model), pytest.raises(VideoError, match="NaN or infinite"):
        forward(model, inputs)


def test_one_frame_is_encoded_whole(model: nn.Module) -> None:
    method: Method = KEEP_TOKENS
    inputs = llava_inputs(PROMPTS["one_video"], frames=1, video_tokens=10)
    plain = forward(model, inputs).logits
    with method(model):
        torch.testing.assert_close(forward(model, inputs).logits, plain, atol=2e-5, rtol=1e-4)
