"""LLaVA-NeXT-Video: CLIP tower, pooling in front of the projector, Llama-like language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import UnsupportedModelError
from earlytom.models.base import find_submodule
from earlytom.models.llava import Llava, class_tokens_of


class LlavaNextVideo(Llava):
    """``LlavaNextVideoModel`` of transformers: 24x24 patches become 12x12 tokens, no newlines.

    The CLS token of a frame goes through the encoder with it and is cut off behind the encoder
    (``vision_feature_select_strategy="default"``): it is merged as its frame is, no reduction or
    reuse of patches touches it, and methods never see it. Patches are pooled in front of the
    projector; tokens that a patch reduction has left go around that pooling.

    Raises:
        UnsupportedModelError: the config keeps CLS, has no CLIP tower or pools by a convolution.
    """

    model_types = ("llava_next_video",)
    packer_name = "pack_image_features"
    checkpoints = ("llava-hf/LLaVA-NeXT-Video-7B-hf",)

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        config: Any = inner.config
        strategy, self.class_tokens = config.vision_feature_select_strategy, 1
        if strategy != "default" or not class_tokens_of(self.tower):
            raise UnsupportedModelError(
                f"LLaVA-NeXT-Video with vision_feature_select_strategy={strategy!r} in front of a "
                f"{type(self.tower).__name__}: needs a CLS token that is cut off ('default')"
            )
        if config.spatial_pool_mode not in ("average", "max"):
            raise UnsupportedModelError(
                f"LLaVA-NeXT-Video with spatial_pool_mode={config.spatial_pool_mode!r}: signals of "
                "patches cannot be pooled alike; supported: average, max"
            )
        self.pooling = int(config.spatial_pool_stride)
        side = self.patch_side // self.pooling
        self.grid = (side, side)

    @property
    def pooler(self) -> nn.Module:
        """``vision_resampler``."""
        return find_submodule(self.inner, "vision_resampler")

    @property
    def entry(self) -> nn.Module:
        """Pooling comes in front of the projector."""
        return self.pooler

    @property
    def projected(self) -> int:
        """Patches are pooled already."""
        return self.tokens_per_frame

    def projector_rows(self, patches: int, full: int) -> int:
        """Patches left over by a reduction are not pooled."""
        return patches if patches < full else patches // self.pooling**2

    def placeholder_count(self, frames: list[int]) -> int:
        """Tokens of every frame."""
        return sum(frames) * self.tokens_per_frame

    def pool(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Pool with the model's own pooling layer."""
        assert self.patch_grid is not None
        cells = x.unflatten(1, grid or self.patch_grid).permute(0, 3, 1, 2)
        pooled: Tensor = self.pooler.pool(cells)  # type: ignore[operator]
        return pooled.flatten(2).transpose(1, 2)

    def read_features(self, output: Any, frames: list[int]) -> list[Tensor]:
        """Rows are ``[videos, frames * tokens, dim]``, or a tuple of ``[frames, tokens, dim]``."""
        return [rows.reshape(-1, rows.shape[-1]) for rows in output.pooler_output]

    def write_features(self, output: Any, videos: list[Tensor]) -> Any:
        """Put the rows back in the form that came in."""
        if isinstance(output.pooler_output, Tensor):
            output.pooler_output = torch.stack(videos)
        else:
            size = self.tokens_per_frame
            output.pooler_output = tuple(rows.unflatten(0, (-1, size)) for rows in videos)
        return output
