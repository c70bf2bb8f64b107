"""Which frames of a video are taken.

Uniform sampling uses the LLaVA rule ``floor(linspace(0, total - 1, n))``: first and last frame are
always taken (Hugging Face's default ``arange(n) * total // n`` never takes the last one). Sampling
by rate takes the frame on screen at ``0, 1/fps, 2/fps, ...`` seconds after the first frame. No
frame is taken twice, so a video with fewer frames than asked for gives all of its frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from earlytom.errors import VideoError

DEFAULT_FRAMES = 32
MAX_FRAMES = 4096
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """A checked request: either ``frames`` uniform frames, or ``fps`` frames per second.

    Args:
        frames: number of frames, 1..4096; 32 if neither is given.
        fps: frames per second, a finite number > 0.
        max_frames: upper limit of the frames taken by ``fps``; what is above it is thinned
            uniformly. Without it more than 4096 frames are refused.

    Raises:
        VideoError: both or nothing sensible given, or a value out of range.
    """

    frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.frames is not None and self.fps is not None:
            raise VideoError("give either frames or fps, not both")
        for name in ("frames", "max_frames"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
                raise VideoError(f"{name} must be an integer >= 1, got {value!r}")
            if value > MAX_FRAMES:
                raise VideoError(f"{name} must be at most {MAX_FRAMES}, got {value}")
        if self.fps is not None:
            number = isinstance(self.fps, (int, float)) and not isinstance(self.fps, bool)
            if not number or not math.isfinite(self.fps) or self.fps <= 0:
                raise VideoError(f"fps must be a finite number > 0, got {self.fps!r}")
        elif self.frames is None:
            object.__setattr__(self, "frames", DEFAULT_FRAMES)

    def pick(self, pts: Ints, time_base: Fraction) -> Ints:
        """Return ascending indices into ``pts`` (ticks of ``time_base`` seconds, ascending)."""
        total = len(pts)
        if self.fps is None:
            return uniform(total, self._limit(self.frames))
        ticks = self.ticks(int(pts[-1] - pts[0]), time_base)
        return np.unique(np.searchsorted(pts, pts[0] + ticks, side="right") - 1)

    def times(self, duration: int, rate: Fraction, time_base: Fraction) -> Ints:
        """Return ascending times in ticks after the first frame, for a stream that is not counted.

        For uniform sampling these are the middles of the wanted frames at constant ``rate``
        (frames per second), so that they name the same frames as :meth:`pick`.
        """
        step = 1 / (rate * time_base)
        if self.fps is not None:
            return self.ticks(duration - round(step), time_base)
        total = max(1, round(duration * time_base * rate))
        index = uniform(total, self._limit(self.frames))
        return np.array([int((int(i) + Fraction(1, 2)) * step) for i in index], dtype=np.int64)

    def _limit(self, n: int | None) -> int:
        limit = self.max_frames or MAX_FRAMES
        return limit if n is None else min(n, limit)

    def ticks(self, last: int, time_base: Fraction) -> Ints:
        """Return the times ``0, 1/fps, ...`` up to ``last``, in ticks of ``time_base`` seconds."""
        fps = Fraction(str(self.fps))
        # half a tick more: a container that counts in ms may round the last frame down
        count = math.floor((max(0, last) + Fraction(1, 2)) * time_base * fps) + 1
        if self.max_frames is None and count > MAX_FRAMES:
            raise VideoError(
                f"fps={self.fps} asks for {count} frames, more than {MAX_FRAMES}; "
                "pass max_frames or a lower fps"
            )
        keep = uniform(count, self._limit(None))
        return np.array([round(int(k) / (fps * time_base)) for k in keep], dtype=np.int64)


def uniform(total: int, n: int) -> Ints:
    """Return ``min(n, total)`` ascending indices ``floor(linspace(0, total - 1, n))``."""
    if n >= total:
        return np.arange(total, dtype=np.int64)
    return np.linspace(0, total - 1, n).astype(np.int64)
