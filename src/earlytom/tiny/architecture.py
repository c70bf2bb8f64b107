"""Configuration of the tiny LLaVA-OneVision model and small helpers on its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from earlytom.tiny.vocabulary import IMAGE_ID, VIDEO_ID, vocabulary_size
from earlytom.tiny.world import GRID, IMAGE_SIZE

PATCH = 8
TEXT_WIDTH = 256
PIXEL_MEAN = 0.5
PIXEL_STD = 0.25


def build_model(seed: int = 0) -> Any:
    """A freshly initialised ``LlavaOnevisionForConditionalGeneration`` in float32."""
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    vision = SiglipVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        num_hidden_layers=12,
        num_attention_heads=5,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=vocabulary_size(),
        hidden_size=TEXT_WIDTH,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        video_token_index=VIDEO_ID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return LlavaOnevisionForConditionalGeneration(config)


def normalise(pixels: NDArray[np.uint8] | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``[..., H, W, 3]`` uint8 frames to ``[..., 3, H, W]``: ``(x / 255 - mean) / std``."""
    frames = torch.as_tensor(pixels).movedim(-1, -3).float()
    return ((frames / 255 - PIXEL_MEAN) / PIXEL_STD).to(dtype)


def pool_tokens(features: Tensor) -> Tensor:
    """``[B, 196, D]`` patch tokens to ``[B, 49, D]`` frame tokens, as the model pools videos.

    Bilinear interpolation by exactly one half equals the mean of 2x2 neighbours.
    """
    batch, _, width = features.shape
    return features.view(batch, GRID, 2, GRID, 2, width).mean((2, 4)).reshape(batch, -1, width)


class FrameEncoder(nn.Module):
    """Vision tower, projector and pooling as one fast call: ``[B, 3, H, W] -> [B, 49, D]``.

    Shares its parameters with the model.  Attention is the eager one: it has the faster backward
    pass on CPUs.  ``compiled`` compiles each layer; ``stride`` skips layers (see stage 1).
    """

    stride: int = 1

    def __init__(self, model: Any, compiled: bool = True) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.tower.set_attn_implementation("eager")
        layers = self.tower.encoder.layers
        self._calls: list[Callable[..., Any]] = [
            torch.compile(layer.forward) if compiled else layer.forward for layer in layers
        ]

    def forward(self, pixels: Tensor) -> Tensor:
        """Pooled, projected tokens of a batch of frames."""
        hidden = self.tower.embeddings(pixels)
        for call in self._calls[:: self.stride]:
            hidden = call(hidden, None)
        return pool_tokens(self.projector(hidden))
