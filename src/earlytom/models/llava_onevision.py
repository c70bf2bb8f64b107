"""LLaVA-OneVision: SigLIP tower, Qwen2 language model, 1-D RoPE."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import UnsupportedModelError, VideoError
from earlytom.models.base import Adapter, find_submodule


class LlavaOnevision(Adapter):
    """``LlavaOnevisionModel`` of transformers: bilinear 2x pooling, one newline token a video."""

    model_types = ("llava_onevision",)

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.tower = find_submodule(inner, "vision_tower")
        layers = find_submodule(self.tower, "encoder.layers", "vision_model.encoder.layers")
        assert isinstance(layers, nn.ModuleList)
        self.layers = layers
        self.projectors = [find_submodule(inner, "multi_modal_projector")]
        self.language_model = find_submodule(inner, "language_model")
        vision: Any = inner.config.vision_config  # type: ignore[union-attr]
        patches = vision.image_size // vision.patch_size
        side = math.ceil(patches / 2)
        self.grid = (side, side)
        self.patch_grid = (patches, patches)
        self.patch_size = vision.patch_size

    @property
    def usable_layers(self) -> int:
        """Layers up to the one named by ``vision_feature_layer``."""
        chosen = self.inner.config.vision_feature_layer  # type: ignore[union-attr]
        if not isinstance(chosen, int):
            raise UnsupportedModelError(
                f"vision_feature_layer={chosen!r}: features of several layers cannot be merged"
            )
        return chosen if chosen >= 0 else len(self.layers) + 1 + chosen

    def frame_counts(self, arguments: dict[str, Any]) -> list[int]:
        """``pixel_values_videos`` is ``[videos, frames, 3, height, width]``."""
        pixels = arguments.get("pixel_values_videos", arguments.get("pixel_values"))
        if not isinstance(pixels, Tensor) or pixels.dim() != 5:
            shape = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise VideoError(
                f"pixel_values_videos must be [videos, frames, 3, height, width], got {shape}"
            )
        if pixels.shape[1] == 0:
            raise VideoError(
                "pixel_values_videos holds videos of zero frames; at least 1 is needed"
            )
        return [pixels.shape[1]] * pixels.shape[0]

    def placeholder_count(self, frames: list[int]) -> int:
        """Tokens of every frame and one newline token per video."""
        return sum(t * self.tokens_per_frame + 1 for t in frames)

    def pool(self, x: Tensor) -> Tensor:
        """Pool with the model's own ``apply_pooling``."""
        pooled: Tensor = self.inner.apply_pooling(x)  # type: ignore[operator]
        return pooled

    def read_features(self, output: Any, frames: list[int]) -> list[Tensor]:
        """Rows are ``[videos, frames * tokens (+ newline), dim]``, bare or in ``pooler_output``."""
        rows = output if isinstance(output, Tensor) else output.pooler_output
        return list(rows)

    def write_features(self, output: Any, videos: list[Tensor]) -> Any:
        """Stack the rows back into the container that came in."""
        rows = torch.stack(videos)
        if isinstance(output, Tensor):
            return rows
        output.pooler_output = rows
        return output
