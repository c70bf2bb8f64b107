"""Vectorised frame preprocessing, numerically equal to Hugging Face's video processors.

Measured bit-identical to ``LlavaOnevisionVideoProcessor`` (transformers 5.23, torchvision 0.28) on
CPU: the resize must run on uint8 (a float resize that is rounded afterwards differs by 1/255 in a
fifth of the pixels) and the normalisation must fold the rescaling into mean and deviation.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from earlytom.errors import ConfigError
from earlytom.video.types import check_frames

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class FrameConfig:
    """What a checkpoint's video processor does to a frame; defaults are LLaVA-OneVision's.

    Attributes:
        size: (height, width) in pixels, or one number for the shorter edge.
        resample: PIL code of the filter: 0 nearest, 2 bilinear, 3 bicubic (antialiased).
        mean: per channel, for values in [0, 1].
        std: per channel, for values in [0, 1].
        rescale_factor: factor from uint8 to the range of ``mean`` and ``std``.
        do_resize: whether to resize.
        do_rescale: whether to multiply with ``rescale_factor``.
        do_normalize: whether to subtract ``mean`` and divide by ``std``.

    Raises:
        ConfigError: a value that this package cannot reproduce.
    """

    size: tuple[int, int] | int = (384, 384)
    resample: int = 3
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    rescale_factor: float = 1 / 255
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True

    def __post_init__(self) -> None:
        sides = (self.size,) if isinstance(self.size, int) else self.size
        if len(sides) not in (1, 2) or any(not isinstance(s, int) or s < 1 for s in sides):
            raise ConfigError(f"size must be (height, width) or a shorter edge, got {self.size!r}")
        if self.resample not in _MODES:
            raise ConfigError(f"resample must be 0, 2 or 3 (PIL codes), got {self.resample!r}")
        if self.do_normalize and not (len(self.mean) == len(self.std) == 3):
            raise ConfigError("mean and std must have three channels")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FrameConfig:
        """Read the JSON of a ``video_preprocessor_config.json``; absent keys take the defaults.

        Raises:
            ConfigError: the file asks for a step that is not known here (crop, pad, other sizes).
        """
        for step in ("do_center_crop", "do_pad"):
            if data.get(step):
                raise ConfigError(f"{step} is only supported through the official processor")
        values: dict[str, Any] = {}
        if data.get("size") is not None:
            values["size"] = _size(data["size"], bool(data.get("default_to_square", False)))
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            if data.get(theirs) is not None:
                value = data[theirs]
                values[ours] = (value,) * 3 if isinstance(value, (int, float)) else tuple(value)
        keys = ("resample", "rescale_factor", "do_resize", "do_rescale", "do_normalize")
        values |= {k: data[k] for k in keys if data.get(k) is not None}
        return cls(**values)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of a processed frame."""
        if not self.do_resize:
            return height, width
        if isinstance(self.size, tuple):
            return self.size
        short, long = sorted((height, width))
        scaled = int(self.size * long / short)
        return (self.size, scaled) if height <= width else (scaled, self.size)


def preprocess_video(frames: Tensor, config: FrameConfig | None = None) -> Tensor:
    """Turn decoded frames into ``pixel_values_videos`` of one video.

    Args:
        frames: ``[T, H, W, 3]`` uint8.
        config: the checkpoint's settings; LLaVA-OneVision's if None.

    Returns:
        ``[1, T, 3, h, w]`` float32 (uint8 if neither rescaled nor normalised).

    Raises:
        VideoError: ``frames`` has another shape or dtype.
    """
    check_frames(frames)
    config = config or FrameConfig()
    x = frames.permute(0, 3, 1, 2)
    size = config.output_size(x.shape[2], x.shape[3])
    if config.do_resize and size != (x.shape[2], x.shape[3]):
        x = _resize(x.contiguous(), size, _MODES[config.resample])
    if config.do_normalize:
        factor = 1.0 / config.rescale_factor if config.do_rescale else 1.0
        mean = torch.tensor(config.mean, device=x.device) * factor
        std = torch.tensor(config.std, device=x.device) * factor
        x = x.to(torch.float32, memory_format=torch.contiguous_format)
        x = x.sub_(mean[:, None, None]).div_(std[:, None, None])
    elif config.do_rescale:
        x = x * config.rescale_factor
    return x.contiguous()[None]


def _resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize ``[T, 3, H, W]`` uint8 as torchvision does: on uint8 where that kernel exists."""
    if mode == "nearest-exact":
        return F.interpolate(x, size=size, mode=mode)
    native = x.device.type == "cpu" and (mode == "bicubic" or _fast_bilinear())
    y = x if native else x.to(torch.float32)
    y = F.interpolate(y, size=size, mode=mode, align_corners=False, antialias=True)
    return y if native else y.clamp_(0, 255).round_().to(torch.uint8)


def _fast_bilinear() -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return capability in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")


def _size(size: Any, square: bool) -> tuple[int, int] | int:
    if isinstance(size, int) and not isinstance(size, bool):
        return (size, size) if square else size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, Mapping):
        given = {k: v for k, v in size.items() if v is not None}
        if set(given) == {"height", "width"}:
            return int(given["height"]), int(given["width"])
        if set(given) == {"shortest_edge"}:
            return int(given["shortest_edge"])
    raise ConfigError(f"size {size!r} is only supported through the official processor")
