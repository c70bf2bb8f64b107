"""LLaVA-Video with the conventions of its original code, which transformers cannot express.

Converted checkpoints load as ``llava_onevision`` and then run bilinear pooling and one newline
token per video. The original pools by averaging (27x27 -> 13x13) and puts a newline token behind
every grid row of every frame. :func:`use_llava_video_layout` switches a live model to that.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import UnsupportedModelError
from earlytom.models.llava_onevision import LlavaOnevision

LAYOUT = "_llava_video_layout"


class LlavaVideo(LlavaOnevision):
    """A ``LlavaOnevisionModel`` in LLaVA-Video layout: average pooling, grid newlines.

    A compressed frame keeps the newline of every grid row that is complete, and its last newline
    as long as any of its tokens is there; the newline that ends the video always stays. Newlines
    are never counted as visual tokens.
    """

    model_types = ("llava_video",)

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        vision: Any = inner.config.vision_config  # type: ignore[union-attr]
        side = vision.image_size // vision.patch_size // 2
        self.grid = (side, side)

    def placeholder_count(self, frames: list[int]) -> int:
        """``height * (width + 1)`` per frame."""
        height, width = self.grid
        return sum(t * height * (width + 1) for t in frames)

    def take_tokens(self, rows: Tensor, n_frames: int) -> Tensor:
        """Leave out the newline column."""
        height, width = self.grid
        cells = _whole(rows, n_frames * height * (width + 1))
        cells = cells.unflatten(0, (n_frames, height, width + 1))
        return cells[:, :, :width].flatten(1, 2)

    def put_tokens(self, rows: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
        """Keep the newlines of complete rows and the last one of every frame that is there."""
        height, width = self.grid
        n = tokens.shape[0]
        newline = _whole(rows, n * height * (width + 1)).unflatten(0, (n, height, width + 1))
        newline = newline[:, :, width:]
        grid = kept.unflatten(1, (height, width))
        stay = grid.all(2)
        stay[:, -1] = grid.flatten(1).any(1)
        stay[-1, -1] = True
        newline = newline.masked_fill(~stay[:, :, None, None], float("nan"))
        cells = torch.cat([tokens.unflatten(1, (height, width)), newline], 2)
        return cells.flatten(0, 2)[: rows.shape[0]]


def use_llava_video_layout(model: nn.Module, enable: bool = True) -> nn.Module:
    """Switch a LLaVA-OneVision model to LLaVA-Video's own pooling and newlines, or back.

    Instance attributes only; ``enable=False`` leaves no trace. A frame then takes
    ``13 * 14 = 182`` placeholder tokens (27x27 patches) and a video no further newline.

    Args:
        model: a ``LlavaOnevisionForConditionalGeneration`` that holds LLaVA-Video weights.
        enable: False to undo.

    Raises:
        UnsupportedModelError: not such a model, or a method is on it (restore it first).
    """
    from earlytom.hf.engine import controller_of
    from earlytom.models import find_adapter

    if controller_of(model) is not None:
        raise UnsupportedModelError("restore the model before changing its layout")
    inner = find_adapter(model).inner
    attributes = inner.__dict__
    for name in ("apply_pooling", "get_video_features", LAYOUT):
        attributes.pop(name, None)
    if enable:
        object.__setattr__(inner, "get_video_features", _GridNewlines(inner))
        object.__setattr__(inner, "apply_pooling", types.MethodType(_average_pool, inner))
        object.__setattr__(inner, LAYOUT, True)
    return model


def _average_pool(inner: Any, features: Tensor) -> Tensor:
    """``[frames, patches, dim]`` -> ``[frames, tokens, dim]``, 2x2 means without padding."""
    vision = inner.config.vision_config
    side = vision.image_size // vision.patch_size
    grid = features.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return nn.functional.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)


class _GridNewlines:
    """``get_video_features`` with a newline behind every grid row."""

    def __init__(self, inner: nn.Module) -> None:
        self._inner = inner
        original: Any = inner.get_video_features
        self._original = original
        functools.update_wrapper(self, original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._original(*args, **kwargs)
        adapter = LlavaVideo(self._inner)
        bound = inspect.signature(self._original).bind(*args, **kwargs)
        frames = adapter.frame_counts(bound.arguments)
        videos = adapter.read_features(output, frames)
        newline: Any = self._inner.image_newline
        height, width = adapter.grid
        done = []
        for rows, t in zip(videos, frames, strict=True):
            trailing = rows.shape[0] - t * height * width  # newer versions append one newline
            cells = rows[: t * height * width].unflatten(0, (t, height, width))
            column = newline.to(cells).expand(t, height, 1, -1)
            whole = torch.cat([cells, column], 2).flatten(0, 2)
            # older ones append it later, in forward: that becomes the last newline of the grid
            done.append(whole if trailing else whole[:-1])
        return adapter.write_features(output, done)


def _whole(rows: Tensor, count: int) -> Tensor:
    """Add the last newline where transformers appends it only after ``get_video_features``."""
    return rows if rows.shape[0] == count else torch.cat([rows, rows[-1:]])
