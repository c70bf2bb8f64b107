"""Packed towers: geometry of every video, segments behind merges, signals, positions, refusals."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import earlytom
from earlytom import EarlyTom
from earlytom.errors import UnsupportedModelError, VideoError
from earlytom.method import Method
from earlytom.models import find_adapter
from earlytom.ops.plan import MergePlan
from earlytom.stages import TokenSelection, VideoFeatures, VideoState
from tests.families import PROMPTS, VIDEO, Family, forward, generate
from tests.matrix import METHODS
from tests.toys import TOYS, Toy

SHAPES = [(6, 4, 8), (3, 10, 6), (1, 4, 4)]  # frames, patches high and wide
THREE = [["t3", "v", "t2", "v", "t4", "v", "t1"]]


@dataclass(frozen=True, kw_only=True)
class Choose(Method):
    """Keep the named frames after a layer, and every token whose number is a multiple of step."""

    layer: int = 1
    frames: tuple[int, ...] = (0, 2, 3)
    step: int = 1
    score: int | None = None
    name = "choose"

    def merge_points(self, n_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def score_layer(self, n_layers: int) -> int | None:
        return self.score

    def needs_keys(self) -> bool:
        return self.score is not None

    def merge_frames(self, hidden: Tensor, state: VideoState, *_: Any) -> MergePlan:
        n = state.n_frames
        members = tuple((f,) for f in self.frames if f < n)
        return MergePlan(n, members, ((1.0,),) * len(members))

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        SEEN.append(video)
        total = video.features.shape[0] * video.features.shape[1]
        return None if self.step == 1 else TokenSelection(torch.arange(0, total, self.step))


SEEN: list[VideoFeatures] = []


@pytest.fixture(autouse=True)
def _forget() -> None:
    SEEN.clear()


def features(model: Any, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model.model.get_video_features(
            inputs["pixel_values_videos"].clone(), inputs["video_grid_thw"].clone()
        )


def rows(output: Any) -> list[Tensor]:
    return list(output.pooler_output)


@pytest.mark.parametrize("layer", range(6))
def test_frames_left_are_those_of_the_whole_model(
    family: Family, model: nn.Module, layer: int
) -> None:
    """Frames do not see each other in the tower: what is kept must come out unchanged."""
    inputs = family.inputs(THREE, shapes=SHAPES)
    plain = rows(features(model, inputs))
    with Choose(layer=layer)(model):
        got = rows(features(model, inputs))
    for (t, h, w), a, b in zip(SHAPES, plain, got, strict=True):
        kept = torch.tensor([f in (0, 2, 3) for f in range(t)])
        a, b = a.view(t, h * w // 4, -1), b.view(t, h * w // 4, -1)
        torch.testing.assert_close(b[kept], a[kept], atol=1e-6, rtol=1e-5)
        assert b[~kept].isnan().all()


def test_layers_behind_a_merge_get_fewer_rows_and_segments(
    family: Family, model: nn.Module
) -> None:
    inputs = family.inputs(THREE, shapes=SHAPES)
    seen: list[tuple[int, int, int, int]] = []

    def spy(module: nn.Module, args: Any, kwargs: Any) -> None:
        ends, rope = kwargs["cu_seqlens"], kwargs["position_embeddings"]
        seen.append((len(args[0]), len(rope[0]), int(ends[-1]), len(ends) - 1))

    plain, layers = [], model.model.visual.blocks
    handles = [x.register_forward_pre_hook(spy, with_kwargs=True) for x in layers]
    features(model, inputs)
    plain, seen[:] = list(seen), []
    for h in handles:
        h.remove()
    with Choose(layer=2)(model):
        handles = [x.register_forward_pre_hook(spy, with_kwargs=True) for x in layers]
        features(model, inputs)
        for h in handles:
            h.remove()
    assert seen[:3] == plain[:3]
    adapter: Any = find_adapter(model)
    left = [(3, 4, 8), (2, 10, 6), (1, 4, 4)]
    total = sum(t * h * w for t, h, w in left)
    for i, (n, rope, end, segments) in enumerate(seen[3:], 3):
        assert n == rope == end == total
        assert segments == sum(t * len(adapter.segments((h // 2, w // 2), i)) for t, h, w in left)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("score", [1, 2])
def test_received_attention_and_keys(family: Family, attn: str, score: int) -> None:
    """Against a whole map of every frame in which other segments are masked out."""
    model = family.model(attn=attn)
    inputs = family.inputs(THREE, shapes=SHAPES)
    attention = model.model.visual.blocks[score].attn
    seen: dict[str, Any] = {}
    handle = attention.register_forward_pre_hook(
        lambda m, a, kw: seen.update(x=a[0] if a else kw["hidden_states"], **kw), with_kwargs=True
    )
    with Choose(layer=5, frames=tuple(range(6)), score=score)(model):
        features(model, inputs)
    handle.remove()
    code = importlib.import_module(type(attention).__module__)
    x = seen["x"]
    q, k, _ = attention.qkv(x).reshape(len(x), 3, attention.num_heads, -1).permute(1, 0, 2, 3)
    q, k = code.apply_rotary_pos_emb_vision(q, k, *seen["position_embeddings"])
    of = torch.bucketize(torch.arange(len(x)), seen["cu_seqlens"][1:].long(), right=True)
    logits = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    chance = logits.masked_fill(of[:, None] != of, -torch.inf).softmax(-1)
    start = 0
    for (t, h, w), video in zip(SHAPES, SEEN, strict=True):
        assert video.grid == (h // 2, w // 2)
        assert video.received is not None
        assert video.keys is not None
        for f in range(t):
            own = slice(start, start + h * w)
            start += h * w
            received, keys = chance[:, own, own].mean((0, 1)), k[own].mean(1)
            order = raster(model, (h // 2, w // 2), score)
            pooled = received.view(-1, 4).mean(1)[order]
            torch.testing.assert_close(video.received[f], pooled, atol=1e-6, rtol=1e-4)
            pooled = keys.view(len(order), 4, -1).mean(1)[order]
            torch.testing.assert_close(video.keys[f], pooled, atol=1e-6, rtol=1e-4)


def raster(model: Any, grid: tuple[int, int], layer: int) -> Tensor:
    """Where every token of a frame is inside the tower: by its rotary embedding."""
    visual, seen = model.model.visual, []
    handle = visual.blocks[layer].register_forward_pre_hook(
        lambda m, a, kw: seen.append(kw["position_embeddings"]), with_kwargs=True
    )
    pixels = torch.zeros(4 * grid[0] * grid[1], 1176)
    with torch.no_grad():
        visual(pixels, grid_thw=torch.tensor([[1, 2 * grid[0], 2 * grid[1]]]))
    handle.remove()
    cos, sin = (x[::4] for x in seen[0])  # first patch of every token
    angle = torch.atan2(sin, cos) % (2 * torch.pi)
    high, wide = angle[:, 0], angle[:, cos.shape[1] // 4]  # of frequency 1
    place = []
    for row, column in itertools.product(range(grid[0]), range(grid[1])):
        off = [(x - 2 * n) % (2 * torch.pi) for x, n in ((high, row), (wide, column))]
        place.append(sum(torch.minimum(d, 2 * torch.pi - d) for d in off).argmin())
    return torch.stack(place)


def test_every_video_has_its_own_grid(family: Family, model: nn.Module) -> None:
    inputs = family.inputs(THREE, shapes=SHAPES)
    with EarlyTom(retention_ratio=0.25)(model):
        together = generate(model, inputs)
        report = earlytom.last_report(model)
        assert torch.equal(generate(model, inputs), together)
    assert report is not None
    for (t, h, w), video in zip(SHAPES, report.videos, strict=True):
        assert video.tokens_per_frame == h * w // 4
        assert video.tokens_in == t * h * w // 4
        assert video.tokens_out == -(-t * h * w // 16)


def test_videos_of_two_sizes_in_a_batch_equal_each_alone(family: Family, model: nn.Module) -> None:
    inputs = family.inputs(PROMPTS["batch_padded"], shapes=SHAPES[:2])
    kw = {"return_dict_in_generate": True, "output_logits": True}
    for name in ("merge_select_respace", "all", "select_scored"):
        with TOYS[name](model):
            both = torch.stack(generate(model, inputs, **kw).logits, 1)
            for row in range(2):
                alone = generate(model, family.row_alone(inputs, row, [row]), **kw).logits
                expected = torch.stack(alone, 1)[0]
                torch.testing.assert_close(both[row], expected, atol=5e-5, rtol=1e-4)


def entrance(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    seen: list[dict[str, Any]] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda m, a, kw: seen.append(dict(kw)), with_kwargs=True
    )
    forward(model, inputs)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("positions", ["auto", "keep", "respace", "renumber"])
def test_positions(family: Family, model: nn.Module, positions: str) -> None:
    inputs = family.inputs(PROMPTS["one_video"])
    whole = entrance(model, inputs)["position_ids"][-3:, 0]
    method = Choose(frames=(1, 2, 5), step=5, positions=positions)
    with method(model):
        got = entrance(model, inputs)["position_ids"]
        report = earlytom.last_report(model)
    assert got.shape[:2] == (3, 1)
    assert report is not None
    assert report.positions == {"auto": "keep"}.get(positions, positions)
    slots = {"respace": (0, 4, 7)}.get(positions, (1, 2, 5))
    assert report.videos[0].slots == slots
    if positions == "renumber":
        assert torch.equal(got[:, 0], torch.arange(got.shape[-1]).expand(3, -1))
        return
    size = family.tokens_per_frame
    video = (inputs["mm_token_type_ids"][0] == 2).nonzero().flatten()
    kept = [slots[i // size] * size + i % size for i in range(0, 3 * size, 5)]
    gone = torch.ones(whole.shape[1], dtype=torch.bool)
    gone[video] = False
    gone[video[kept]] = True
    assert torch.equal(got[:, 0], whole[:, gone])


def test_refusals(family: Family, model: nn.Module) -> None:
    inputs = family.inputs(PROMPTS["one_video"])
    before = forward(model, inputs).logits
    refused = [method for method in METHODS.values() if family.refuses(method)]
    assert len(refused) > 20
    for method in refused:
        with pytest.raises(UnsupportedModelError, match=r"not possible in|must be kept"):
            earlytom.compress(model, method)
    assert torch.equal(forward(model, inputs).logits, before)


def test_compiling_is_refused(model: nn.Module) -> None:
    with pytest.raises(UnsupportedModelError, match="cannot compile"):
        earlytom.compile(model, None, frames=8)


def test_bad_inputs(family: Family, model: nn.Module) -> None:
    inputs = family.inputs(PROMPTS["one_video"])
    with TOYS["select"](model):
        with pytest.raises(VideoError, match="video_grid_thw"):
            features(model, {**inputs, "pixel_values_videos": inputs["pixel_values_videos"][4:]})
        ids = inputs["input_ids"].clone()
        ids[0, int((ids[0] == VIDEO).nonzero()[0])] = 5
        with pytest.raises(VideoError, match="placeholder"):
            forward(model, {**inputs, "input_ids": ids})


def test_prompt_equals_one_compacted_by_hand(family: Family, model: nn.Module) -> None:
    """Embeddings, positions and deepstack features of the columns left, given to the model."""
    inputs = family.inputs(PROMPTS["image_and_video"])
    whole = entrance(model, inputs)
    video = (inputs["mm_token_type_ids"][0] == 2).nonzero().flatten()
    keep = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    keep[video] = torch.arange(len(video)) % 5 == 0
    cut = {"inputs_embeds": whole["inputs_embeds"][:, keep]}
    cut["position_ids"] = whole["position_ids"][-3:, :, keep]
    visual = whole.get("visual_pos_masks")
    if visual is not None:
        cut["visual_pos_masks"] = visual[:, keep]
        cut["deepstack_visual_embeds"] = [
            x[keep[visual[0]]] for x in whole["deepstack_visual_embeds"]
        ]
    lm: Any = model.model.language_model
    with torch.no_grad():
        mask = torch.ones(1, int(keep.sum()), dtype=torch.long)
        out = lm(**cut, attention_mask=mask, use_cache=False).last_hidden_state
        expected = model.lm_head(out)[0]
    with Choose(layer=5, frames=tuple(range(8)), step=5)(model):
        got = forward(model, inputs).logits[0, keep]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@dataclass(frozen=True, kw_only=True)
class Weighted(Choose):
    """Every fifth token counts for 1, 2 and 3 in turn."""

    name = "weighted"

    @property
    def weighs_tokens(self) -> bool:
        return True

    def select_tokens(self, video: VideoFeatures) -> TokenSelection:
        done = super().select_tokens(video)
        assert done is not None
        return TokenSelection(done.index, weight=(torch.arange(len(done.index)) % 3 + 1).float())


def test_weighted_tokens(family: Family, model: nn.Module) -> None:
    inputs = family.inputs(PROMPTS["one_video"])
    whole = entrance(model, inputs)
    video = inputs["mm_token_type_ids"][0] == 2
    keep = ~video
    keep[video.nonzero().flatten()[::5]] = True
    kept = video[keep]
    bias = torch.zeros(len(kept)).masked_scatter(kept, (torch.arange(len(kept)) % 3 + 1).log())
    low = torch.finfo(torch.float32).min
    mask = bias.expand(len(kept), -1).masked_fill(torch.ones(len(kept), len(kept)).triu(1) > 0, low)
    cut = {"inputs_embeds": whole["inputs_embeds"][:, keep]}
    cut["position_ids"] = whole["position_ids"][-3:, :, keep]
    if whole.get("visual_pos_masks") is not None:
        cut["visual_pos_masks"] = kept[None]
        cut["deepstack_visual_embeds"] = [x[::5] for x in whole["deepstack_visual_embeds"]]
    lm: Any = model.model.language_model
    with torch.no_grad():
        out = lm(**cut, attention_mask=mask[None, None], use_cache=False).last_hidden_state
        expected = model.lm_head(out)[0]
    with Weighted(layer=5, frames=tuple(range(8)), step=5)(model):
        got = forward(model, inputs).logits[0, keep]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_weights_of_beams(family: Family, model: nn.Module) -> None:
    """Every beam weighs the tokens of its own videos, several of different sizes in a prompt."""
    inputs = family.inputs([["t3", "v", "t2", "v", "t4"], ["t9", "v", "t2"]], shapes=SHAPES)
    seen: list[Tensor] = []
    spy = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda m, a, kw: seen.append(kw["attention_mask"]), with_kwargs=True
    )
    with spy, Weighted(layer=5, frames=tuple(range(8)), step=5)(model):
        generate(model, inputs)
        greedy = seen[0]
        seen.clear()
        generate(model, inputs, num_beams=3)
    low = torch.finfo(torch.float32).min
    assert ((greedy > low) & (greedy != 0)).any()
    assert torch.equal(seen[0], greedy.repeat_interleave(3, 0))


def deepstack(model: Any, inputs: dict[str, Any]) -> list[list[Tensor]]:
    """Features per layer and video; older transformers do not split them."""
    sizes = (inputs["video_grid_thw"].prod(1) // 4).tolist()
    found = features(model, inputs).deepstack_features
    return [list(x.split(sizes) if isinstance(x, Tensor) else x) for x in found]


def test_deepstack_of_merged_frames(family: Family, model: nn.Module) -> None:
    """Frames kept keep their features; means get the mean if merged behind a deepstack layer."""
    deep_layers = find_adapter(model).deep_layers
    if not deep_layers:
        pytest.skip("no deepstack")
    inputs = family.inputs(THREE, shapes=SHAPES)
    plain = deepstack(model, inputs)
    for layer in range(6):
        with Choose(layer=layer)(model):
            got = deepstack(model, inputs)
        means = Toy(retention_ratio=1.0, merge_layers=(layer,), average=True, positions="keep")
        with means(model):
            mean = deepstack(model, inputs)
        for deep, a, b, c in zip(deep_layers, plain, got, mean, strict=True):
            for (t, h, w), x, y, z in zip(SHAPES, a, b, c, strict=True):
                x, y, z = (part.view(t, h * w // 4, -1) for part in (x, y, z))
                kept = [f for f in (0, 2, 3) if f < t]
                torch.testing.assert_close(y[kept], x[kept], atol=1e-6, rtol=1e-5)
                assert (y[[f for f in range(t) if f not in kept]] == 0).all()
                if deep <= layer:
                    pairs = torch.stack([x[i : i + 2].mean(0) for i in range(0, t, 2)])
                    torch.testing.assert_close(z[::2], pairs, atol=1e-6, rtol=1e-5)


def test_selection_without_merging(family: Family, model: nn.Module) -> None:
    """What keeps the whole grid of positions: EarlyTom with the encoder left alone."""
    inputs = family.inputs(PROMPTS["one_video"])
    method = EarlyTom(retention_ratio=0.25, encoder_budget=1.0)
    with method(model):
        forward(model, inputs)
    report = earlytom.last_report(model)
    assert report is not None
    video = report.videos[0]
    assert (video.frames_out, video.first) == (family.frames, tuple(range(family.frames)))
    assert report.positions == "keep"
    assert report.tokens_out == 24
