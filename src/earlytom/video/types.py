"""The values that every backend returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from earlytom.errors import VideoError


@dataclass(frozen=True, eq=False)
class Frame:
    """One sampled frame, as :func:`earlytom.video.stream_video` gives it.

    Attributes:
        image: ``[H, W, 3]`` uint8 RGB, contiguous, upright (rotation metadata applied); all frames
            of a stream have one size.
        timestamp: seconds since the first frame of the stream.
        limit: frames that the stream gives at most, the same number in each of them.
    """

    image: Tensor
    timestamp: float
    limit: int


@dataclass(frozen=True, eq=False)
class Video:
    """Sampled frames of one video.

    Attributes:
        frames: ``[T, H, W, 3]`` uint8 RGB, upright (rotation metadata applied).
        timestamps: ``[T]`` float64 seconds since the first frame of the stream, from the
            presentation time stamps (PTS), strictly ascending.
        fps: average frame rate of the source in frames per second; 0.0 if unknown.
        duration: seconds of the source; 0.0 if unknown.
        indices: ``[T]`` int64 place of every frame in the source, in presentation order;
            estimated from time and rate if ``exact_indices`` is False (very large files only).
        total_frames: frames in the source, or None if they were not counted.
        exact_indices: whether ``indices`` were counted.
        source: what was opened, for messages.
    """

    frames: Tensor
    timestamps: Tensor
    fps: float
    duration: float
    indices: Tensor
    total_frames: int | None = None
    exact_indices: bool = True
    source: str = "<frames>"

    def __post_init__(self) -> None:
        check_frames(self.frames)

    def __len__(self) -> int:
        return int(self.frames.shape[0])

    @property
    def height(self) -> int:
        """Rows of a frame."""
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        """Columns of a frame."""
        return int(self.frames.shape[2])

    @classmethod
    def from_frames(cls, frames: Any, fps: float = 1.0) -> Video:
        """Wrap frames that are already decoded, taken as evenly spaced.

        Args:
            frames: ``[T, H, W, 3]`` uint8 tensor, array or sequence of arrays.
            fps: frames per second of ``frames``, > 0.

        Raises:
            VideoError: wrong shape, wrong dtype, no frame, or a bad rate.
        """
        if not isinstance(fps, (int, float)) or not 0 < fps < float("inf"):
            raise VideoError(f"fps must be a positive number, got {fps!r}")
        try:
            if isinstance(frames, Sequence):
                frames = torch.stack([torch.as_tensor(f) for f in frames])
            tensor = torch.as_tensor(frames)
        except (TypeError, ValueError, RuntimeError) as e:
            raise VideoError(f"frames must be a uint8 array [T, H, W, 3]: {e}") from e
        check_frames(tensor)
        index = torch.arange(tensor.shape[0])
        n = tensor.shape[0]
        return cls(tensor, index.to(torch.float64) / fps, float(fps), n / fps, index, n)


def check_frames(frames: object) -> None:
    """Raise VideoError unless ``frames`` is a uint8 tensor ``[T >= 1, H >= 1, W >= 1, 3]``."""
    if not isinstance(frames, Tensor):
        raise VideoError(f"frames must be a uint8 tensor [T, H, W, 3], got {type(frames).__name__}")
    shape = list(frames.shape)
    if frames.dtype != torch.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise VideoError(
            f"frames must be a uint8 tensor [T, H, W, 3] with T >= 1, got {frames.dtype} {shape}"
        )
