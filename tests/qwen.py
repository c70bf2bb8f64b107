"""Tiny random Qwen-VL models and prompts for them (packed vision towers, M-RoPE)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from earlytom.method import Method
from tests.families import BOS, IMAGE, PAD, TEXT, VIDEO, Family, build

START, END = 103, 104
MERGE, PATCH = 4, 3 * 2 * 14 * 14  # patches of a token, values of a patch
IMAGE_GRID = (1, 4, 6)
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class QwenFamily(Family):
    """One family: all videos of ``inputs`` have the grid ``shape`` unless others are named."""

    shape: Shape = (8, 6, 8)
    tokens_per_frame: int = 12
    newlines_per_video: int = 0
    core: bool = False

    def model(self, dtype: torch.dtype = torch.float32, attn: str = "sdpa") -> nn.Module:
        return build(CONFIG[self.name](), dtype, attn)

    def inputs(self, prompts: Sequence[Sequence[str]], seed: int = 1, **kw: Any) -> dict[str, Any]:
        kw.setdefault("shapes", [self.shape] * sum(p.count("v") for p in prompts))
        seconds = 1.0 if self.name == "qwen2_5_vl" else None
        stamps = self.name == "qwen3_vl"
        return qwen_inputs(prompts, seed=seed, stamps=stamps, seconds=seconds, **kw)

    def refuses(self, method: Method) -> bool:
        """Whether ``method`` acts on single patches, or renumbers several axes inside."""
        reduces = bool(method.reduce_layers(6)) or method.encoder_grid((3, 4)) is not None
        renumbers = bool(method.inner_points(4)) and method.inner_positions == "renumber"
        return reduces or method.reuse_layer(6) is not None or renumbers

    def videos(self, inputs: dict[str, Any]) -> int:
        return len(inputs["video_grid_thw"])

    def longer(self, inputs: dict[str, Any], ids: torch.Tensor) -> dict[str, Any]:
        out = super().longer(inputs, ids)
        more = ids.shape[1] - inputs["input_ids"].shape[1]
        out["mm_token_type_ids"] = nn.functional.pad(inputs["mm_token_type_ids"], (0, more))
        return out

    def row_alone(self, inputs: dict[str, Any], row: int, videos: list[int]) -> dict[str, Any]:
        count = int(inputs["attention_mask"][row].sum())
        text = ("input_ids", "attention_mask", "mm_token_type_ids")
        out = {k: inputs[k][row : row + 1, -count:] for k in text}
        grids = inputs["video_grid_thw"]
        parts = inputs["pixel_values_videos"].split(grids.prod(1).tolist())
        out["pixel_values_videos"] = torch.cat([parts[v] for v in videos])
        out["video_grid_thw"] = grids[videos]
        if "second_per_grid_ts" in inputs:
            out["second_per_grid_ts"] = inputs["second_per_grid_ts"][videos]
        return out


def text_config(**kw: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    return {**TEXT, "rope_parameters": rope, **kw}


TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def qwen2_5_vl_config() -> Any:
    from transformers import Qwen2_5_VLConfig

    vision = {
        "depth": 6,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 56,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [2, 5],
    }
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text_config(), **TOKENS)


def qwen2_vl_config() -> Any:
    from transformers import Qwen2VLConfig

    vision = {
        "depth": 6,
        "embed_dim": 48,
        "hidden_size": 64,
        "mlp_ratio": 2,
        "num_heads": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return Qwen2VLConfig(vision_config=vision, text_config=text_config(), **TOKENS)


def qwen3_vl_config() -> Any:
    from transformers import Qwen3VLConfig

    vision = {
        "depth": 6,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [1, 2, 4],
    }
    text = text_config(head_dim=16)
    return Qwen3VLConfig(vision_config=vision, text_config=text, **TOKENS)


CONFIG = {
    "qwen2_5_vl": qwen2_5_vl_config,
    "qwen2_vl": qwen2_vl_config,
    "qwen3_vl": qwen3_vl_config,
}


def smooth_patches(shape: Shape, g: torch.Generator) -> torch.Tensor:
    """Patches of two scenes, each a drifting picture plus a little noise ``[t * h * w, PATCH]``."""
    t, h, w = shape
    cut = t // 2 + 1
    scene, drift = (torch.randn(2, h * w, PATCH, generator=g) * s for s in (1.0, 0.15))
    noise = 0.05 * torch.randn(t, h * w, PATCH, generator=g)
    of = (torch.arange(t) >= cut).long()
    return (scene[of] + drift[of] * torch.arange(t)[:, None, None] + noise).flatten(0, 1)


def qwen_inputs(
    prompts: Sequence[Sequence[str]],
    shapes: Sequence[Shape],
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    left: bool = True,
    stamps: bool = False,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Prompts as in ``tests.families``; ``stamps`` puts text in front of every frame (Qwen3-VL)."""
    g = torch.Generator().manual_seed(seed)
    rest = iter(shapes)
    rows, kinds = [], []
    videos: list[Shape] = []
    images = 0
    for prompt in prompts:
        row, kind = [BOS], [0]
        for part in prompt:
            if part == "v":
                videos.append(next(rest))
                t, h, w = videos[-1]
                parts = [h * w // MERGE] * t if stamps else [t * h * w // MERGE]
                for i, n in enumerate(parts):
                    stamp = [20 + i, 30] if stamps else []
                    row += [*stamp, START, *[VIDEO] * n, END]
                    kind += [0] * (len(stamp) + 1) + [2] * n + [0]
            elif part == "i":
                images += 1
                n = IMAGE_GRID[1] * IMAGE_GRID[2] // MERGE
                row += [START, *[IMAGE] * n, END]
                kind += [0, *[1] * n, 0]
            else:
                row += torch.randint(2, 100, (int(part[1:]),), generator=g).tolist()
                kind += [0] * int(part[1:])
        rows.append(row)
        kinds.append(kind)
    width = max(map(len, rows))

    def pad(lists: list[list[int]], value: int) -> torch.Tensor:
        fill = [[value] * (width - len(r)) for r in lists]
        both = zip(fill, lists, strict=True)
        return torch.tensor([f + r if left else r + f for f, r in both])

    out: dict[str, Any] = {
        "input_ids": pad(rows, PAD),
        "attention_mask": pad([[1] * len(r) for r in rows], 0),
        "mm_token_type_ids": pad(kinds, 0),
    }
    if videos:
        out["pixel_values_videos"] = torch.cat([smooth_patches(s, g) for s in videos]).to(dtype)
        out["video_grid_thw"] = torch.tensor(videos)
        if seconds is not None:
            out["second_per_grid_ts"] = torch.tensor([seconds] * len(videos))
    if images:
        n = images * IMAGE_GRID[1] * IMAGE_GRID[2]
        out["pixel_values"] = torch.randn(n, PATCH, generator=g).to(dtype)
        out["image_grid_thw"] = torch.tensor([IMAGE_GRID] * images)
    return out
