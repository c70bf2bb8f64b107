"""Video-LLaVA: a CLIP-like video tower, no pooling, CLS tokens among the video tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import UnsupportedModelError
from earlytom.models.llava import Llava, class_tokens_of


class VideoLlava(Llava):
    """``VideoLlavaModel`` of transformers: CLS and 16x16 tokens for every frame.

    A CLS token belongs to its frame, not to the grid. In the encoder it is merged as its frame is,
    no reduction or reuse of patches touches it, and methods never see it. In the prompt it is
    treated like the newline tokens of other families: it stays as long as any token of its frame
    does, and is never counted, so that a retention ratio means patches of the grid everywhere.
    """

    model_types = ("video_llava",)
    checkpoints = ("LanguageBind/Video-LLaVA-7B-hf",)
    pooling = 1
    no_image_signals = "images have an encoder of their own (image_tower), which is not watched"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner, "video_tower")
        self.grid = (self.patch_side, self.patch_side)
        if not class_tokens_of(self.tower):
            raise UnsupportedModelError(
                f"Video-LLaVA with a {type(self.tower).__name__}: needs a tower with a CLS token"
            )
        self.class_tokens = self.entry_class_tokens = self.kept_class_tokens = 1
        self._frames = 1  # of a video, in the last call

    def frame_counts(self, arguments: dict[str, Any]) -> list[int]:
        """``pixel_values_videos`` is ``[videos, frames, 3, height, width]``."""
        counts = super().frame_counts(arguments)
        self._frames = counts[0] if counts else 1
        return counts

    def placeholder_count(self, frames: list[int]) -> int:
        """CLS and grid of every frame."""
        return sum(frames) * (1 + self.tokens_per_frame)

    def take_tokens(self, rows: Tensor, n_frames: int) -> Tensor:
        """Leave out CLS."""
        return rows.unflatten(0, (n_frames, 1 + self.tokens_per_frame))[:, 1:]

    def put_tokens(self, rows: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
        """Keep CLS of every frame of which any token is left."""
        classes = rows.unflatten(0, (kept.shape[0], 1 + self.tokens_per_frame))[:, :1]
        classes = classes.masked_fill(~kept.any(1)[:, None, None], float("nan"))
        return torch.cat([classes, tokens], 1).flatten(0, 1)

    def read_features(self, output: Any, frames: list[int]) -> list[Tensor]:
        """Rows are ``[all frames, 1 + tokens, dim]``; all videos of a call have equal lengths."""
        rows: Tensor = output.pooler_output
        counts = frames or [self._frames] * (rows.shape[0] // self._frames)
        return [part.flatten(0, 1) for part in rows.split(counts)]

    def write_features(self, output: Any, videos: list[Tensor]) -> Any:
        """Join the rows of all videos."""
        output.pooler_output = torch.cat(videos).unflatten(0, (-1, 1 + self.tokens_per_frame))
        return output
