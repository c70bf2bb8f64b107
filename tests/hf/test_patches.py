"""Token reduction inside the vision encoder: mechanics against plain references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import earlytom
from earlytom import ConfigError, UnsupportedModelError, VideoError
from earlytom.method import Method
from earlytom.stages import PatchReduction, PatchState
from tests.families import FRAMES, PROMPTS, Family, forward
from tests.toys import Toy
from tests.toys_patches import PATCH_TOYS, ToyPatches, ToyRestored

FAMILY = Family("llava_onevision")
LAYERS, GRID = 6, (5, 5)


@pytest.fixture
def model() -> nn.Module:
    return FAMILY.model()


def video(videos: int = 1) -> Tensor:
    pixels: Tensor = FAMILY.inputs([["t2", *["v"] * videos]])["pixel_values_videos"]
    return pixels


def features(model: Any, pixels: Tensor) -> Tensor:
    """Rows ``[videos, frames * 9, dim]`` for the language model, NaN where none is to be."""
    with torch.no_grad():
        out = model.model.get_video_features(pixels)
    rows = out if isinstance(out, Tensor) else out.pooler_output
    return rows[:, : FRAMES * 9]


def projector_input(model: Any, method: Method, pixels: Tensor) -> Tensor:
    seen: list[Tensor] = []
    with method(model):
        handle = model.model.multi_modal_projector.register_forward_pre_hook(
            lambda module, args: seen.append(args[0])
        )
        features(model, pixels)
        handle.remove()
    return seen[0]


def encode(model: Any, method: Method, pixels: Tensor) -> tuple[Tensor, PatchState]:
    """The encoder in plain words, one video: what the hooks have to give."""
    tower = model.model.vision_tower
    wanted = -(-method.token_budget(FRAMES, 9) // FRAMES)
    state = PatchState.start(FRAMES, GRID, LAYERS, wanted)
    points = method.reduce_layers(LAYERS)

    def reduce(x: Tensor, layer: int, place: str) -> Tensor:
        if layer not in points or method.reduce_place != place:
            return x
        state.layer, state.point = layer, points.index(layer)
        done = method.reduce_patches(x, state)
        if done is None:
            return x
        state.apply(done)
        return done.hidden

    with torch.no_grad():
        x = tower.embeddings(pixels[0])
        for i, layer in enumerate(tower.encoder.layers):
            x = reduce(x, i, "input")
            home = None
            if i in method.rebuild_layers(LAYERS) and state.n_tokens < 25:
                home = _home(state)
                x = _owned(x, state.owner)
            attn, y = layer.self_attn, layer.layer_norm1(x)
            q, k, v = (
                f(y).unflatten(2, (4, -1)).transpose(1, 2)
                for f in (attn.q_proj, attn.k_proj, attn.v_proj)
            )
            state.query, state.key = q, k
            logits = q @ k.transpose(2, 3) * attn.scale
            if method.proportional_attention() and home is None:
                logits = logits + state.size.log()[:, None, None]
            mixed = attn.out_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
            x = x + mixed
            if home is not None:
                x = torch.stack([f[h] for f, h in zip(x, home, strict=True)])
            x = reduce(x, i, "attention")
            x = x + layer.mlp(layer.layer_norm2(x))
            x = reduce(x, i, "output")
    return x, state


def _owned(x: Tensor, owner: Tensor) -> Tensor:
    return torch.stack([frame[row] for frame, row in zip(x, owner, strict=True)])


def _home(state: PatchState) -> list[list[int]]:
    return [[r.index(t) for t in range(state.n_tokens)] for r in state.owner.tolist()]


MERGING = {k: m for k, m in PATCH_TOYS.items() if m.mode != "drop" or not m.rebuild}
MERGING["rebuild"] = ToyPatches(mode="average", layers=(1, 4), rebuild=(2, 3))
MERGING["rebuild-here"] = ToyPatches(mode="average", place="input", layers=(2,), rebuild=(2, 4))
PLACED = {k: m for k, m in MERGING.items() if not isinstance(m, ToyRestored)}


@pytest.mark.parametrize("name", PLACED)
def test_encoder_equals_a_plain_reference(model: nn.Module, name: str) -> None:
    method, pixels = PLACED[name], video()
    expected, state = encode(model, method, pixels)
    seen = projector_input(model, method, pixels)
    assert seen.shape == expected.shape
    torch.testing.assert_close(seen, expected, atol=2e-5, rtol=1e-4)
    assert state.size.sum() == FRAMES * 25 or method.mode == "drop"


def test_proportional_attention_matters_and_needs_sizes(model: nn.Module) -> None:
    method, pixels = PATCH_TOYS["patches-keys-proportional"], video()
    plain = projector_input(model, replace(method, proportional=False), pixels)
    assert not torch.allclose(projector_input(model, method, pixels), plain, atol=1e-3)


@pytest.mark.parametrize("place", ["input", "attention", "output"])
def test_nothing_reduced_is_bit_identical(model: nn.Module, place: str) -> None:
    inputs = FAMILY.inputs(PROMPTS["two_videos"])
    before = forward(model, inputs).logits
    method = ToyPatches(
        retention_ratio=1.0, place=place, layers=(1, 3, 5), mode="keys", proportional=True
    )
    with method(model):
        assert torch.equal(forward(model, inputs).logits, before)
    with ToyRestored(retention_ratio=1.0, place=place, score=1, mode="keys")(model):
        assert torch.equal(forward(model, inputs).logits, before)


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.25, 0.3, 0.5, 0.77, 0.99])
@pytest.mark.parametrize("family", ["llava_onevision", "llava_video"])
def test_counts_are_exact(family: str, ratio: float) -> None:
    owner = Family(family, tokens_per_frame=9 if family == "llava_onevision" else 4)
    live = owner.model()
    pixels = video(2)
    method = ToyPatches(retention_ratio=ratio, mode="keys", layers=(0, 3))
    with method(live):
        live.model.get_video_features(pixels)  # type: ignore[operator,union-attr]
        report = earlytom.last_report(live)
    assert report is not None
    size = owner.tokens_per_frame
    wanted = -(-method.token_budget(FRAMES, size) // FRAMES)
    for v in report.videos:
        assert v.tokens_out == method.token_budget(FRAMES, size)
        assert v.index is not None
        assert (v.index.diff() > 0).all()
        assert v.index.max() < FRAMES * size
        assert [layer for layer, _ in v.patch_reductions] == [0, 3]
        assert v.patch_reductions[-1] == (3, wanted)
        assert v.to_dict()["patch_reductions"][-1] == [3, wanted]


def test_tokens_stand_in_the_cell_of_their_patches(model: Any) -> None:
    pixels = video(2)
    tokens = projector_input(model, PATCH_TOYS["patches-drop-last"], pixels)
    with PATCH_TOYS["patches-drop-last"](model):  # 4 of 25 patches a frame, 29 tokens of 32
        rows = features(model, pixels)
    with torch.no_grad():
        projected = model.model.multi_modal_projector(tokens).unflatten(0, (2, FRAMES))
    # patches 0, 7, 13, 19 are (0, 0), (1, 2), (2, 3), (3, 4) of 5 x 5: 3 x 3 cells
    cells = [0, 1, 5, 8]
    for v in range(2):
        frames = rows[v].view(FRAMES, 9, -1)
        for t in range(FRAMES):
            there = (~frames[t].isnan().any(1)).nonzero().flatten().tolist()
            assert there == (cells[:3] if t in (1, 4, 6) else cells)  # 3 tokens must go
            for cell in there:
                token = cells.index(cell)
                torch.testing.assert_close(frames[t, cell], projected[v, t, token])


@pytest.mark.parametrize("mode", ["keys", "drop"])
def test_restored_patches_have_the_value_of_their_owner(model: nn.Module, mode: str) -> None:
    pixels = video()
    placed = ToyPatches(mode=mode, layers=(1, 4), retention_ratio=0.5)
    tokens, state = encode(model, placed, pixels)
    whole = projector_input(
        model, ToyRestored(mode=mode, layers=(1, 4), retention_ratio=0.5), pixels
    )
    assert whole.shape == (FRAMES, 25, tokens.shape[2])
    owner = state.owner
    torch.testing.assert_close(
        whole[owner >= 0], _owned(tokens, owner.clamp_min(0))[owner >= 0], atol=2e-5, rtol=1e-4
    )
    assert all(len(frame.unique(dim=0)) == state.n_tokens for frame in whole)
    assert (owner < 0).any() == (mode == "drop")


def test_restored_grid_is_selected_from(model: nn.Module) -> None:
    method = ToyRestored(mode="keys", layers=(1, 3), score=1, retention_ratio=0.5)
    with method(model):
        features(model, video(2))
        report = earlytom.last_report(model)
    assert report is not None
    assert [v.tokens_out for v in report.videos] == [36, 36]
    received = report.videos[0].received
    assert received is not None
    assert received.shape == (FRAMES, 9)


def test_order_of_first_call_and_compress_does_not_matter(model: nn.Module) -> None:
    """transformers records hidden states by hooks that it installs with the first call."""
    method, pixels = PATCH_TOYS["patches-drop-last"], video()
    with method(model):
        fresh = features(model, pixels)
    other = FAMILY.model()
    features(other, pixels)
    with method(other):
        assert torch.equal(features(other, pixels).nan_to_num(9), fresh.nan_to_num(9))


@pytest.mark.parametrize("place", ["input", "attention", "output"])
def test_earlier_feature_layer(place: str) -> None:
    model: Any = FAMILY.model()
    model.model.config.vision_feature_layer = -2
    method = ToyPatches(mode="keys", place=place, layers=(2, 4), proportional=True)
    seen = projector_input(model, method, video())
    torch.testing.assert_close(seen, _one_layer_less(model, method), atol=2e-5, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"this model uses layers 0\.\.4"):
        earlytom.compress(model, replace(method, layers=(2, 5)))


def _one_layer_less(model: Any, method: Method) -> Tensor:
    layers = model.model.vision_tower.encoder.layers
    model.model.vision_tower.encoder.layers = layers[:-1]
    expected, _ = encode(model, method, video())
    model.model.vision_tower.encoder.layers = layers
    return expected


def test_videos_do_not_see_each_other(model: nn.Module) -> None:
    pixels = video(2)
    with PATCH_TOYS["patches-keys"](model):
        both = features(model, pixels)
        for v in range(2):
            alone = features(model, pixels[v : v + 1])[0]
            torch.testing.assert_close(both[v], alone, equal_nan=True, atol=2e-5, rtol=1e-4)


def test_gradients_flow(model: Any) -> None:
    pixels = video().requires_grad_()
    with PATCH_TOYS["patches-keys-proportional"](model):
        out = model.model.get_video_features(pixels)
        (out if isinstance(out, Tensor) else out.pooler_output).nan_to_num(0).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.isfinite().all()
    assert (pixels.grad != 0).any()


@pytest.mark.parametrize(
    ("name", "share"),
    [("patches-drop", 0.6), ("patches-drop-input", 0.45), ("patches-keys-proportional", 0.6)],
)
def test_layers_behind_a_reduction_compute_less(model: nn.Module, name: str, share: float) -> None:
    pixels = video()

    def flops() -> int:
        with FlopCounterMode(display=False) as counter:
            features(model, pixels)
        return counter.get_total_flops()

    full = flops()
    with PATCH_TOYS[name](model):
        assert flops() < share * full


@pytest.mark.parametrize(
    ("name", "copies"), [("patches-keys-proportional", 1), ("patches-restored", 1)]
)
def test_host_is_asked_once_a_video(
    model: nn.Module, name: str, copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for attribute in ("item", "tolist", "cpu", "nonzero", "__bool__", "__int__", "__float__"):
        original = getattr(Tensor, attribute)

        def spy(self: Any, *args: Any, _o: Any = original, _n: str = attribute, **kw: Any) -> Any:
            calls.append(_n)
            return _o(self, *args, **kw)

        monkeypatch.setattr(Tensor, attribute, spy)
    features(model, video(2))
    plain = len(calls)
    with PATCH_TOYS[name](model):
        calls.clear()
        features(model, video(2))
    # is everything finite, or is a patch without owner to be restored
    assert len(calls) - plain == 2 * copies, calls


# ---------------------------------------------------------------------- refusals
class Broken(ToyPatches):
    """Returns a target of the wrong length."""

    name = "broken"

    def reduce_patches(self, hidden: Tensor, state: PatchState) -> PatchReduction | None:
        done = super().reduce_patches(hidden, state)
        assert done is not None
        return PatchReduction(done.hidden, done.target[:, :-1])


def _attach(method: Method) -> Callable[[Any], None]:
    return lambda model: features(earlytom.compress(model, method), video(2))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (ToyPatches(layers=(1, 6)), "encoder layer 6 is out of range; this model uses layers 0..5"),
        (ToyPatches(rebuild=(2, 9)), "encoder layer 9 is out of range"),
        (ToyPatches(layers=(3, 1)), "reduce_layers must be strictly ascending"),
        (ToyPatches(place="between"), "reduce_place must be one of input, attention, output"),
        (ToyPatches(mode="keys", place="input", layers=(0,)), "no attention of one layer"),
        (ToyPatches(mode="keys", layers=(1, 2), rebuild=(2,)), "no attention of one layer"),
        (Broken(), "returned a patch reduction"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_misfits_are_config_errors(model: nn.Module, method: Method, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _attach(method)(model)


class Both(ToyPatches):
    name = "both"

    def merge_points(self, n_layers: int) -> tuple[int, ...]:
        return (2,)


class Greedy(ToyPatches):
    """Leaves more tokens than there are cells."""

    name = "greedy"

    def reduce_patches(self, hidden: Tensor, state: PatchState) -> PatchReduction | None:
        state.wanted = 10
        return super().reduce_patches(hidden, state)


class Uneven(ToyPatches):
    """Leaves another number of tokens in every video."""

    name = "uneven"

    def reduce_patches(self, hidden: Tensor, state: PatchState) -> PatchReduction | None:
        state.wanted += int(hidden.max() > 100)
        return super().reduce_patches(hidden, state)


def test_frames_and_patches_do_not_mix(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="both merges frames and reduces patches"):
        earlytom.compress(model, Both())


def test_more_tokens_than_cells(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"greedy leaves 10 tokens per frame .* 9 places"):
        _attach(Greedy())(model)


def test_frames_must_stay_equally_long(model: nn.Module) -> None:
    pixels = video(2)
    pixels[1] *= 1000
    with (
        Uneven(place="input", layers=(0,))(model),
        pytest.raises(ConfigError, match="left 3, 4 patches per frame"),
    ):
        features(model, pixels)


@pytest.mark.parametrize("when", ["before", "after"])
def test_proportional_attention_needs_a_float_mask(model: Any, when: str) -> None:
    method = PATCH_TOYS["patches-keys-proportional"]
    config = model.model.vision_tower.encoder.layers[0].self_attn.config
    if when == "before":
        config._attn_implementation = "flash_attention_2"
        with pytest.raises(UnsupportedModelError, match=r"one of sdpa, eager .* not flash"):
            earlytom.compress(model, method)
        return
    with method(model):
        config._attn_implementation = "flex_attention"
        with pytest.raises(UnsupportedModelError, match="not flex_attention"):
            features(model, video())


def test_feature_strategy_that_cuts_a_token(model: nn.Module) -> None:
    model.model.config.vision_feature_select_strategy = "default"  # type: ignore[union-attr]
    with PATCH_TOYS["patches-drop"](model), pytest.raises(UnsupportedModelError, match="strategy"):
        features(model, video())


def test_nan_video(model: nn.Module) -> None:
    pixels = video()
    pixels[0, 2, 0, 5, 5] = float("nan")
    with PATCH_TOYS["patches-drop"](model), pytest.raises(VideoError, match="NaN"):
        features(model, pixels)


def test_gradient_checkpointing_is_refused(model: Any) -> None:
    model.gradient_checkpointing_enable()
    model.train()
    with (
        PATCH_TOYS["patches-drop"](model),
        pytest.raises(UnsupportedModelError, match="checkpointing"),
    ):
        model.model.get_video_features(video())


def test_error_leaves_the_model_usable(model: nn.Module) -> None:
    inputs = FAMILY.inputs(PROMPTS["one_video"])
    before = forward(model, inputs).logits
    with pytest.raises(ConfigError):
        _attach(Greedy())(model)
    earlytom.restore(model)
    assert torch.equal(forward(model, inputs).logits, before)
    with Toy(retention_ratio=0.25)(model):
        forward(model, inputs)
