"""What a checkpoint's video processor does to a frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from earlytom.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL codes


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
        if self.resample not in RESAMPLE:
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
