"""LLaVA-OneVision: SigLIP tower, Qwen2 language model, 1-D RoPE."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.models.llava import Llava


class LlavaOnevision(Llava):
    """``LlavaOnevisionModel`` of transformers: bilinear 2x pooling, one newline token a video."""

    model_types = ("llava_onevision",)
    pooling_name = "apply_pooling"
    packer_name = "pack_image_features"
    checkpoints = (
        "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    )

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        side = math.ceil(self.patch_side / 2)
        self.grid = (side, side)

    def placeholder_count(self, frames: list[int]) -> int:
        """Tokens of every frame and one newline token per video."""
        return sum(t * self.tokens_per_frame + 1 for t in frames)

    def pool(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
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
