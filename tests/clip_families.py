"""Tiny random LLaVA-NeXT-Video and Video-LLaVA models (CLIP towers) and prompts for them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tests.families import (
    FRAMES,
    IMAGE,
    TEXT,
    VIDEO,
    Family,
    build,
    fill_prompts,
    smooth_video,
)

LLAMA = {"model_type": "llama", **TEXT}


def clip(side: int) -> dict[str, Any]:
    """A tower of 7 layers, of which 6 are used (``vision_feature_layer=-2``)."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "image_size": side,
        "patch_size": 14,
        "projection_dim": 64,
    }


@dataclass(frozen=True)
class ClipFamily(Family):
    """What both families share; ``side`` is that of a frame in pixels."""

    side: int = 84
    core: bool = False

    def config(self) -> Any:
        raise NotImplementedError

    def image(self, count: int, g: torch.Generator) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def image_tokens(self) -> int:
        raise NotImplementedError

    def model(self, dtype: torch.dtype = torch.float32, attn: str = "sdpa") -> nn.Module:
        return build(self.config(), dtype, attn)

    def inputs(
        self,
        prompts: Sequence[Sequence[str]],
        seed: int = 1,
        frames: int = FRAMES,
        dtype: torch.dtype = torch.float32,
        left: bool = True,
    ) -> dict[str, Any]:
        g = torch.Generator().manual_seed(seed)
        width = frames * self.tokens_per_frame + self.newlines_per_video
        parts = {"v": [VIDEO] * width, "i": [IMAGE] * self.image_tokens}
        out, counts = fill_prompts(prompts, parts, g, left)
        if counts["v"]:
            videos = [smooth_video(frames, self.side, g) for _ in range(counts["v"])]
            out["pixel_values_videos"] = torch.stack(videos).to(dtype)
        if counts["i"]:
            out.update(self.image(counts["i"], g))
        floats = {k for k, v in out.items() if v.is_floating_point()}
        return {k: v.to(dtype) if k in floats else v for k, v in out.items()}


@dataclass(frozen=True)
class NextVideoFamily(ClipFamily):
    """6x6 patches, 3x3 tokens."""

    name: str = "llava_next_video"
    newlines_per_video: int = 0

    def config(self) -> Any:
        from transformers import LlavaNextVideoConfig

        return LlavaNextVideoConfig(
            vision_config=clip(self.side),
            text_config=LLAMA,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[84, 84]],
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            spatial_pool_mode="average",
            spatial_pool_stride=2,
        )

    @property
    def image_tokens(self) -> int:
        return 36 + 36 + 6  # base, one tile, a newline behind every row

    def image(self, count: int, g: torch.Generator) -> dict[str, Any]:
        pixels = torch.randn(count, 2, 3, self.side, self.side, generator=g)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[84, 84]] * count)}


@dataclass(frozen=True)
class VideoLlavaFamily(ClipFamily):
    """3x3 patches, as many tokens, and CLS."""

    name: str = "video_llava"
    side: int = 42
    newlines_per_video: int = FRAMES
    # nothing is pooled, so patches that are not computed again are equal tokens
    ties: tuple[str, ...] = ("afterimage", "afterimage-10%")

    def config(self) -> Any:
        from transformers import VideoLlavaConfig

        return VideoLlavaConfig(
            vision_config=clip(self.side),
            text_config=LLAMA,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_seq_length=9,
            video_seq_length=10,
        )

    @property
    def image_tokens(self) -> int:
        return 9

    def image(self, count: int, g: torch.Generator) -> dict[str, Any]:
        from transformers.models.video_llava.modeling_video_llava import VideoLlavaModel

        old = "pixel_values" not in inspect.signature(VideoLlavaModel.forward).parameters
        pixels = torch.randn(count, 3, self.side, self.side, generator=g)
        return {"pixel_values_images" if old else "pixel_values": pixels}


CLIP_FAMILIES = [NextVideoFamily("llava_next_video"), VideoLlavaFamily("video_llava")]
