"""Frames -> rows of patches with their grid, as the packed vision towers of Qwen-VL take them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from earlytom.checks import check_count
from earlytom.errors import ConfigError, VideoError
from earlytom.preprocess.frames import CLIP_MEAN, CLIP_STD, FrameConfig
from earlytom.preprocess.pixels import PixelWriter
from earlytom.video.types import check_frames

_LONGEST = 200  # times the shorter side: the official limit


@dataclass(frozen=True)
class PatchConfig:
    """What a Qwen-VL video processor does; defaults are those of Qwen2-VL and Qwen2.5-VL.

    Attributes:
        frame: how frames are resized and normalised; its ``size`` is not used.
        patch_size: pixels of a patch along both axes.
        temporal_patch_size: frames of a patch.
        merge_size: patches of a token along both axes.
        min_pixels: of a resized frame (``per_video``: of all frames together).
        max_pixels: likewise.
        per_video: whether the limits are for all frames of a video together (Qwen3-VL).

    Raises:
        ConfigError: a value out of range.
    """

    frame: FrameConfig = field(default_factory=lambda: FrameConfig(mean=CLIP_MEAN, std=CLIP_STD))
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    per_video: bool = False

    def __post_init__(self) -> None:
        for name in ("patch_size", "temporal_patch_size", "merge_size", "min_pixels"):
            check_count(name, getattr(self, name))
        if not isinstance(self.max_pixels, int) or self.max_pixels < self.min_pixels:
            raise ConfigError(
                f"max_pixels must be an integer >= min_pixels ({self.min_pixels}), "
                f"got {self.max_pixels!r}"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, per_video: bool = False) -> PatchConfig:
        """Read the JSON of a ``video_preprocessor_config.json`` or ``preprocessor_config.json``.

        Args:
            data: absent keys take the defaults of the family.
            per_video: Qwen3-VL's defaults and reading of the limits.

        Raises:
            ConfigError: a step or a value that this package cannot reproduce.
        """
        if data.get("cap_pixels_per_frame"):
            raise ConfigError(
                "cap_pixels_per_frame is only supported through the official processor"
            )
        base = _QWEN3 if per_video else cls()
        keys = ("patch_size", "temporal_patch_size", "merge_size")
        values = {k: data[k] for k in keys if data.get(k) is not None}
        size = data.get("size") or {}
        for name, key in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            limit = data.get(name) if data.get(name) is not None else size.get(key)
            if limit is not None:
                values[name] = limit
        given = {k: v for k, v in data.items() if k != "size" and v is not None}
        defaults = {"image_mean": base.frame.mean, "image_std": base.frame.std}
        frame = FrameConfig.from_dict({**defaults, **given})
        return replace(base, frame=frame, **values)

    def output_size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of resized frames: whole tokens, about the same aspect ratio.

        Raises:
            VideoError: one side is more than 200 times the other.
        """
        factor = self.patch_size * self.merge_size
        if not self.frame.do_resize:
            if height % factor or width % factor:
                raise VideoError(f"frames need sides divisible by {factor}, got {height}x{width}")
            return height, width
        if self.per_video and min(height, width) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        if max(height, width) > _LONGEST * min(height, width):
            raise VideoError(
                f"one side of a frame may be at most {_LONGEST} times the other, "
                f"got {height}x{width}"
            )
        step = self.temporal_patch_size
        count, even = (frames, max(step, round(frames / step) * step)) if self.per_video else (1, 1)
        h, w = (round(side / factor) * factor for side in (height, width))
        if even * h * w > self.max_pixels:
            shrink = math.sqrt(count * height * width / self.max_pixels)
            return (
                max(factor, math.floor(height / shrink / factor) * factor),
                max(factor, math.floor(width / shrink / factor) * factor),
            )
        if even * h * w < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (count * height * width))
            return (
                math.ceil(height * grow / factor) * factor,
                math.ceil(width * grow / factor) * factor,
            )
        return h, w


_QWEN3 = PatchConfig(
    frame=FrameConfig(mean=(0.5,) * 3, std=(0.5,) * 3),
    patch_size=16,
    min_pixels=128 * 32 * 32,
    max_pixels=768 * 32 * 32,
    per_video=True,
)


@dataclass(frozen=True, eq=False)
class Patches:
    """A video as rows of patches.

    Attributes:
        values: ``[t * h * w, 3 * temporal_patch_size * patch_size**2]``; time first, then blocks
            of ``merge_size**2`` patches in raster order, then the patches of a block.
        grid: ``(t, h, w)`` in patches.
    """

    values: Tensor
    grid: tuple[int, int, int]


def patchify_video(
    frames: Tensor, config: PatchConfig | None = None, *, dtype: torch.dtype | None = None
) -> Patches:
    """Turn decoded frames into ``pixel_values_videos`` and ``video_grid_thw`` of one video.

    The last frame is repeated until its patch is full.  A patch's frames are resized, normalised
    and cut one patch of time after the other, so nothing but the result exists in full.

    Args:
        frames: ``[T, H, W, 3]`` uint8.
        config: the checkpoint's settings; Qwen2.5-VL's if None.
        dtype: floating dtype of the result, float32 if None.

    Raises:
        VideoError: ``frames`` has another shape or dtype, or a form that cannot be cut.
    """
    check_frames(frames)
    config = config or PatchConfig()
    side, merge, step = config.patch_size, config.merge_size, config.temporal_patch_size
    height, width = config.output_size(len(frames), frames.shape[1], frames.shape[2])
    t, h, w = -(-len(frames) // step), height // side, width // side
    shape, dtype = (t, h * w, 3 * step * side * side), dtype or torch.float32
    out = torch.empty(shape, dtype=dtype, device=frames.device)
    resized = replace(config.frame, size=(height, width))
    for time in range(t):
        index = torch.arange(time * step, (time + 1) * step).clamp_(max=len(frames) - 1)
        writer = PixelWriter(resized, step, dtype)
        writer.write(frames[index])
        blocks = (step, 3, h // merge, merge, side, w // merge, merge, side)
        cut = writer.pixels().view(blocks).permute(2, 5, 3, 6, 1, 0, 4, 7)
        out[time].view(cut.shape).copy_(cut)
    return Patches(out.flatten(0, 1), (t, h, w))
