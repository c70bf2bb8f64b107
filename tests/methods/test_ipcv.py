from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import earlytom
from earlytom import ConfigError
from earlytom.methods import IPCV
from tests.families import FRAMES, PROMPTS, Family, forward
from tests.inner_states import inner_state, span

FAMILY = Family("llava_onevision")


def projector_input(model: Any, pixels: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = model.model.multi_modal_projector.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    with torch.no_grad():
        model.model.get_video_features(pixels)
    handle.remove()
    return seen[0]


def encode_frame(tower: Any, frame: Tensor, k: int, rebuilt: int, n: int, near: int) -> Tensor:
    """The published algorithm for one frame, patch by patch."""
    x = tower.embeddings(frame[None])[0]
    kept = list(range(len(x)))
    base = before = x

    def complete(now: Tensor) -> Tensor:
        rows = []
        for p in range(len(base)):
            if p in kept:
                rows.append(now[kept.index(p)])
                continue
            distance = torch.stack([(base[p] - base[j]).norm() for j in kept])
            best = distance.argsort(stable=True)[:near].tolist()
            moved = [now[i] - base[kept[i]] for i in best]
            rows.append(base[p] + torch.stack(moved).mean(0))
        return torch.stack(rows)

    for i, layer in enumerate(tower.encoder.layers):
        if i == k:
            change = (x - before).norm(dim=1)
            kept = sorted(change.argsort(descending=True, stable=True)[:n].tolist())
            base, x = x, x[kept]
        before = x
        whole = k <= i < k + rebuilt
        y = complete(x) if whole else x
        y = y + layer.self_attn(layer.layer_norm1(y)[None])[0][0]
        x = y[kept] if whole else y
        x = x + layer.mlp(layer.layer_norm2(x))
    return complete(x)


@pytest.mark.parametrize(("k", "rebuilt"), [(1, 0), (1, 2), (2, 3), (3, 9), (5, 1)])
def test_encoder_equals_the_published_algorithm(k: int, rebuilt: int) -> None:
    model: Any = FAMILY.model()
    pixels = FAMILY.inputs(PROMPTS["two_videos"])["pixel_values_videos"]
    method = IPCV(
        retention_ratio=0.5,
        encoder_ratio=0.4,
        encoder_layer=k,
        rebuilt_layers=rebuilt,
        neighbours=3,
    )
    with method(model):
        whole = projector_input(model, pixels)
        report = earlytom.last_report(model)
    assert report is not None
    assert [v.patch_reductions for v in report.videos] == [((k, 10),)] * 2
    with torch.no_grad():
        for i in (0, FRAMES - 1, FRAMES):
            frame = pixels.flatten(0, 1)[i]
            expected = encode_frame(model.model.vision_tower, frame, k, rebuilt, 10, 3)
            torch.testing.assert_close(whole[i], expected, atol=5e-5, rtol=1e-4)


def test_defaults_scale_with_depth() -> None:
    method = IPCV()
    assert method.reduce_layers(32) == (2, 3)
    assert method.rebuild_layers(32) == tuple(range(3, 10))
    assert method.inner_points(28)[0].layer == 3
    assert method.reduce_layers(26) == (1, 2)
    assert method.rebuild_layers(6) == (1,)
    assert IPCV(retention_ratio=0.3).inner_points(4)[0].layer == 1
    assert IPCV(retention_ratio=1.0).reduce_layers(26) == ()
    assert IPCV(retention_ratio=1.0).inner_points(28) == ()
    assert IPCV(encoder_ratio=1.0).reduce_layers(26) == ()


@pytest.mark.parametrize("pruner", ["fastv", "dart"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_ratio_is_the_average_over_layers(pruner: str, ratio: float) -> None:
    model: Any = FAMILY.model()
    with IPCV(retention_ratio=ratio, pruner=pruner)(model):
        forward(model, FAMILY.inputs(PROMPTS["one_video"]))
        report = earlytom.last_report(model)
    assert report is not None
    assert report.tokens_out == FRAMES * 9
    assert ratio <= report.llm_retention < ratio + 1 / (FRAMES * 9)


def test_ratio_behind_the_layer() -> None:
    model: Any = FAMILY.model()
    with IPCV(retention_ratio=0.25, budget="behind", inner_layer=3)(model):
        forward(model, FAMILY.inputs(PROMPTS["one_video"]))
        report = earlytom.last_report(model)
    assert report is not None
    assert report.layer_tokens == (72, 72, 72, 18)


@pytest.mark.parametrize("pruner", ["fastv", "dart"])
def test_text_and_newlines_stay(pruner: str) -> None:
    g = torch.Generator().manual_seed(2)
    visual = span(30, 4, 20)
    state = inner_state(
        torch.randn(30, 8, generator=g), visual, torch.rand(4, 30, generator=g), layer=3, n_layers=9
    )
    newline = torch.zeros(30, dtype=torch.bool)
    newline[23] = True
    state = inner_state(
        state.hidden, visual, state.attention[:, 0] if state.attention is not None else None,
        layer=3, n_layers=9, patch=state.patch.masked_fill(newline, -2), n_tokens=19,
        entered=19, uncompressed=19,
    )  # fmt: skip
    done = IPCV(retention_ratio=0.5, pruner=pruner, inner_layer=3).merge_inner(state)
    assert done is not None
    kept = set(done.index.tolist())
    assert {*range(4), *range(23, 30)} <= kept
    # 9 layers of 9.5 tokens, 3 layers saw 19
    assert len(kept & set(range(4, 23))) == 5
    if pruner == "fastv":
        assert state.attention is not None
        score = state.attention[:, -1].mean(0)[4:23]
        assert kept & set(range(4, 23)) == {4 + i for i in score.topk(5).indices.tolist()}


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder_ratio": 0.0},
        {"encoder_layer": 0},
        {"neighbours": 0},
        {"rebuilt_layers": -1},
        {"pruner": "random"},
        {"inner_layer": 0},
        {"budget": "all"},
    ],
    ids=str,
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        IPCV(**settings)


def test_ratio_out_of_reach_names_the_floor() -> None:
    model: Any = FAMILY.model()
    with pytest.raises(ConfigError, match=r"at least 0\.250 of the visual tokens on 4 layers"):
        earlytom.compress(model, IPCV(retention_ratio=0.25))
    with pytest.raises(ConfigError, match="encoder layer 6 is out of range"):
        earlytom.compress(model, IPCV(retention_ratio=0.5, encoder_layer=6))
