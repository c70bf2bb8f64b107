"""Encoders with a CLS token in front of the patches of a frame, against plain references."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import earlytom
from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.hf.engine import controller_of
from earlytom.method import Method
from earlytom.methods import Afterimage, LowResolution
from earlytom.models import find_adapter
from earlytom.ops.fresh import changed_patches
from earlytom.stages import PatchState
from tests.clip_families import CLIP_FAMILIES, ClipFamily, NextVideoFamily
from tests.families import FRAMES, PROMPTS, VIDEO, forward
from tests.toys import TOYS, Toy
from tests.toys_patches import PATCH_TOYS, ToyPatches, ToyRestored

USED = 6  # of 7 layers
PLACED = {k: m for k, m in PATCH_TOYS.items() if not isinstance(m, ToyRestored) and not m.rebuild}
PLACED["rebuild"] = ToyPatches(mode="average", layers=(1, 4), rebuild=(2, 3))
NEXT, PLAIN = CLIP_FAMILIES
owners = pytest.mark.parametrize("owner", CLIP_FAMILIES, ids=lambda f: f.name)


def tower_of(model: Any) -> Any:
    return find_adapter(model).tower


def features(model: Any, pixels: Tensor) -> Tensor:
    """Rows ``[frames of all videos, rows, dim]``."""
    with torch.no_grad():
        rows = model.model.get_video_features(pixels).pooler_output
    rows = rows if isinstance(rows, Tensor) else torch.stack(list(rows))
    return rows.reshape(pixels.shape[0] * pixels.shape[1], -1, rows.shape[-1])


def video(owner: ClipFamily, videos: int = 1) -> Tensor:
    pixels: Tensor = owner.inputs([["t2", *["v"] * videos]])["pixel_values_videos"]
    return pixels


def projector_input(model: Any, method: Method, pixels: Tensor) -> Tensor:
    seen: list[Tensor] = []
    with method(model):
        handle = model.model.multi_modal_projector.register_forward_pre_hook(
            lambda module, args: seen.append(args[0])
        )
        features(model, pixels)
        handle.remove()
    return seen[0]


def encode(owner: ClipFamily, model: Any, method: Method, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """CLS and patches left behind the used layers in plain words."""
    side, tower = owner.side // 14, tower_of(model)
    tower = getattr(tower, "vision_model", tower)
    wanted = -(-method.token_budget(FRAMES, owner.tokens_per_frame) // FRAMES)
    state = PatchState.start(FRAMES, (side, side), USED, wanted)
    points = method.reduce_layers(USED)

    def reduce(x: Tensor, layer: int, place: str) -> Tensor:
        if layer not in points or method.reduce_place != place:
            return x
        state.layer, state.point = layer, points.index(layer)
        done = method.reduce_patches(x[:, 1:], state)
        if done is None:
            return x
        state.apply(done)
        return torch.cat([x[:, :1], done.hidden], 1)

    def owned(x: Tensor) -> Tensor:
        rows = torch.stack([f[1:][r] for f, r in zip(x, state.owner.clamp_min(0), strict=True)])
        return torch.cat([x[:, :1], rows], 1)

    def home(x: Tensor) -> Tensor:
        first = [[r.index(t) for t in range(state.n_tokens)] for r in state.owner.tolist()]
        rows = torch.stack([f[1:][h] for f, h in zip(x, first, strict=True)])
        return torch.cat([x[:, :1], rows], 1)

    with torch.no_grad():
        x = tower.pre_layrnorm(tower.embeddings(pixels[0]))
        for i, layer in enumerate(tower.encoder.layers[:USED]):
            x = reduce(x, i, "input")
            back = i in method.rebuild_layers(USED) and state.n_tokens < side * side
            x = owned(x) if back else x
            attn, y = layer.self_attn, layer.layer_norm1(x)
            q, k, v = (
                f(y).unflatten(2, (4, -1)).transpose(1, 2)
                for f in (attn.q_proj, attn.k_proj, attn.v_proj)
            )
            state.query, state.key = q[:, :, 1:], k[:, :, 1:]
            logits = q @ k.transpose(2, 3) * attn.scale
            if method.proportional_attention() and not back:
                size = torch.cat([torch.ones(FRAMES, 1), state.size], 1)
                logits = logits + size.log()[:, None, None]
            x = x + attn.out_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
            x = reduce(home(x) if back else x, i, "attention")
            x = x + layer.mlp(layer.layer_norm2(x))
            x = reduce(x, i, "output")
    return x[:, :1], x[:, 1:]


@owners
@pytest.mark.parametrize("name", PLACED)
def test_reduction_leaves_cls_alone(owner: ClipFamily, name: str) -> None:
    model, method, pixels = owner.model(), PLACED[name], video(owner)
    cls, patches = encode(owner, model, method, pixels)
    expected = patches if owner is NEXT else torch.cat([cls, patches], 1)
    seen = projector_input(model, method, pixels)
    torch.testing.assert_close(seen, expected, atol=2e-5, rtol=1e-4)


@owners
@pytest.mark.parametrize(("layer", "budget"), [(0, 0.3), (1, 0.3), (1, 0.7), (4, 0.7)])
def test_reuse_computes_every_cls(owner: ClipFamily, layer: int, budget: float) -> None:
    """As a full encoder, after each layer of which stale patches copy their source."""
    model, pixels = owner.model(), video(owner, 2)
    method = Afterimage(retention_ratio=1.0, encoder_budget=budget, layer=layer)
    layers, sources = find_adapter(model).layers, []

    def copy_stale(x: Tensor) -> Tensor:
        videos = zip(x.split(FRAMES), sources, strict=True)
        return torch.cat([v[s, torch.arange(v.shape[1])] for v, s in videos])

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        for x in args[0].split(FRAMES):
            count = method.fresh_count(FRAMES, x.shape[1] - 1, USED)
            fresh = changed_patches(x[:, 1:], count)
            fresh = torch.cat([torch.ones(FRAMES, 1, dtype=torch.bool), fresh], 1)
            frame = torch.arange(FRAMES)[:, None].expand(fresh.shape)
            sources.append(torch.where(fresh, frame, -1).cummax(0).values)
        return (copy_stale(args[0]), *args[1:]), kwargs

    handles = [layers[layer].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [
        part.register_forward_hook(lambda m, a, out: copy_stale(out), prepend=True)
        for part in layers[layer:]
    ]
    expected = features(model, pixels)
    for handle in handles:
        handle.remove()
    plain = features(model, pixels)
    with method(model):
        found = features(model, pixels)
        report = earlytom.last_report(model)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-3)
    assert report is not None
    side = owner.side // 14
    for v in report.videos:
        assert v.reuse is not None
        assert v.reuse[1] == method.fresh_count(FRAMES, side * side, USED)  # CLS is not counted


@owners
@pytest.mark.parametrize("points", [(1, 3), (5,), (-1,)])
def test_frames_left_keep_their_rows_and_the_others_are_gone(
    owner: ClipFamily, points: tuple[int, ...]
) -> None:
    model, pixels = owner.model(), video(owner)
    plain = features(model, pixels)
    with Toy(retention_ratio=1.0, merge_layers=points, positions="keep")(model):
        rows = features(model, pixels)
        report = earlytom.last_report(model)
    assert report is not None
    first = report.videos[0].first
    assert len(first) == FRAMES // 2 ** len(points)
    for t in range(FRAMES):
        if t in first:
            torch.testing.assert_close(rows[t], plain[t])
        else:
            assert rows[t].isnan().all()


@owners
def test_methods_never_see_cls(owner: ClipFamily) -> None:
    seen: list[tuple[str, int]] = []
    patches = (owner.side // 14) ** 2

    @dataclass(frozen=True, kw_only=True)
    class Spy(Toy):
        def merge_frames(self, hidden: Tensor, *rest: Any) -> Any:
            seen.append(("merge", hidden.shape[1]))
            return super().merge_frames(hidden, *rest)

        def finish_frames(self, hidden: Tensor, *rest: Any) -> None:
            seen.append(("finish", hidden.shape[1]))

        def needs_keys(self) -> bool:
            return True

        def select_tokens(self, v: Any) -> Any:
            for x in (v.state.received, v.state.keys):
                seen.append(("signal", x.shape[1]))
            seen.append(("tokens", v.features.shape[1]))
            return super().select_tokens(v)

    model = owner.model()
    with Spy(merge_layers=(1, 5), score=3, retention_ratio=0.1)(model):
        features(model, video(owner))
    assert {n for kind, n in seen if kind != "tokens"} == {patches}
    assert ("tokens", owner.tokens_per_frame) in seen
    assert [kind for kind, _ in seen].count("finish") == 2


@owners
def test_signals_are_those_of_the_patches(owner: ClipFamily) -> None:
    """Attention that patches receive, from CLS too; their keys."""
    states: list[Any] = []

    @dataclass(frozen=True, kw_only=True)
    class Spy(Toy):
        def needs_keys(self) -> bool:
            return True

        def select_tokens(self, v: Any) -> Any:
            states.append((v.state.received, v.state.keys))
            return super().select_tokens(v)

    model, pixels = owner.model(attn="eager"), video(owner)
    layer: Any = find_adapter(model).layers[3]
    keys: list[Tensor] = []
    layer.self_attn.k_proj.register_forward_hook(lambda m, a, out: keys.append(out))
    with torch.no_grad():
        seen = tower_of(model)(pixels[0], output_attentions=True).attentions[3]
    with Spy(score=3, retention_ratio=0.5)(model):
        features(model, pixels)
    received, mean_keys = states[0]
    torch.testing.assert_close(received, seen.mean((1, 2))[:, 1:])
    torch.testing.assert_close(mean_keys, keys[0].unflatten(2, (4, -1)).mean(2)[:, 1:])


def test_cls_of_video_llava_stays_with_its_frame_and_is_not_counted() -> None:
    model, inputs = PLAIN.model(), PLAIN.inputs(PROMPTS["one_video"])
    plain = features(model, inputs["pixel_values_videos"])
    with Toy(retention_ratio=0.05)(model):
        rows = features(model, inputs["pixel_values_videos"])
        forward(model, inputs)
        report = earlytom.last_report(model)
    assert report is not None
    there = {t for t, _, _ in report.videos[0].provenance()}
    assert 1 < len(there) < FRAMES
    for t in range(FRAMES):
        if t in there:
            assert torch.equal(rows[t, 0], plain[t, 0])
        else:
            assert rows[t].isnan().all()
    assert report.tokens_in == FRAMES * 9
    assert report.tokens_out == Toy(retention_ratio=0.05).token_budget(FRAMES, 9)
    text = int((inputs["input_ids"] != VIDEO).sum())
    assert report.prompt_columns == (text + FRAMES * 10, text + report.tokens_out + len(there))


@owners
def test_unused_layers_are_out_of_range(owner: ClipFamily) -> None:
    model = owner.model()
    assert find_adapter(model).usable_layers == USED
    with pytest.raises(ConfigError, match=r"this model uses layers 0\.\.5"):
        earlytom.compress(model, Toy(retention_ratio=0.5, score=6))
    with pytest.raises(ConfigError, match="out of range"):
        earlytom.compress(model, replace(TOYS["merge"], merge_layers=(6,)))
    assert controller_of(model) is None


@owners
@pytest.mark.parametrize("ratio", [0.5, 0.3, 0.12])
def test_lower_resolution(owner: ClipFamily, ratio: float) -> None:
    """Frames are encoded small; every token is one of the small encoder's."""
    model, pixels = owner.model(), video(owner)
    adapter, method = find_adapter(model), LowResolution(retention_ratio=ratio)
    coarse = method.encoder_grid(adapter.grid)
    assert coarse is not None
    size = [n * 14 for n in adapter.encoder_grid(coarse)]
    small = nn.functional.interpolate(pixels[0], size, mode="bilinear", antialias=True)
    with torch.no_grad():
        states = adapter.tower(small, interpolate_pos_encoding=True, output_hidden_states=True)
        x = states.hidden_states[USED][:, 1:]
        grid = x.unflatten(1, adapter.encoder_grid(coarse)).permute(0, 3, 1, 2)
        x = nn.functional.avg_pool2d(grid, adapter.pooling).flatten(2).transpose(1, 2)
        expected = adapter.projectors[0](x)
    with method(model):
        rows = features(model, pixels)
        report = earlytom.last_report(model)
    assert report is not None
    assert report.tokens_out == FRAMES * coarse[0] * coarse[1] <= ratio * report.tokens_in
    tokens = rows[:, -owner.tokens_per_frame :]
    found = tokens[~tokens.isnan().any(2)].view(expected.shape)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "CLS token that is cut off"),
        ({"spatial_pool_mode": "conv"}, "supported: average, max"),
    ],
)
def test_layouts_that_are_not_supported(change: dict[str, Any], message: str) -> None:
    @dataclass(frozen=True)
    class Other(NextVideoFamily):
        def config(self) -> Any:
            config = super().config()
            for name, value in change.items():
                setattr(config, name, value)
            return config

    with pytest.raises(UnsupportedModelError, match=message):
        find_adapter(Other("other").model())
