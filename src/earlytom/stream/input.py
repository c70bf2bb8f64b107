"""What may be pushed: frames of one size, time stamps that go up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from earlytom.errors import VideoError
from earlytom.video.types import check_frames


def frames_of(frames: Any, size: tuple[int, int] | None) -> Tensor:
    """Return ``[n, H, W, 3]`` uint8 frames.

    Args:
        frames: one frame ``[H, W, 3]`` or several ``[n, H, W, 3]``: uint8 tensor, array, or a
            sequence of either.
        size: (height, width) of the frames before, None if there are none.

    Raises:
        VideoError: another shape or dtype, or frames of another size.
    """
    try:
        if isinstance(frames, (list, tuple)):
            frames = torch.stack([torch.as_tensor(f) for f in frames])
        found = torch.as_tensor(frames)
    except (TypeError, ValueError, RuntimeError) as e:
        raise VideoError(f"frames must be uint8 [H, W, 3] or [n, H, W, 3]: {e}") from e
    check_frames(found[None] if found.dim() == 3 else found)
    found = found[None] if found.dim() == 3 else found
    if size is not None and tuple(found.shape[1:3]) != size:
        raise VideoError(
            f"all frames of a stream need one size: got {found.shape[2]}x{found.shape[1]} after "
            f"{size[1]}x{size[0]}"
        )
    return found


def times_of(timestamps: Any, n: int, last: float | None) -> list[float]:
    """Return the time stamps of ``n`` frames in seconds.

    Args:
        timestamps: a number for one frame, or ``n`` of them; None: one second after each other.
        n: number of frames.
        last: time stamp of the frame before, None if there is none.

    Raises:
        VideoError: not ``n`` finite numbers that go up.
    """
    if timestamps is None:
        begin = 0.0 if last is None else last + 1.0
        return [begin + i for i in range(n)]
    if isinstance(timestamps, (int, float)) and not isinstance(timestamps, bool):
        timestamps = [timestamps]
    elif hasattr(timestamps, "tolist"):
        timestamps = timestamps.tolist()
        timestamps = timestamps if isinstance(timestamps, list) else [timestamps]
    if not isinstance(timestamps, Sequence) or len(timestamps) != n:
        raise VideoError(f"{n} frames need {n} timestamps in seconds, got {timestamps!r}")
    for t in timestamps:
        number = isinstance(t, (int, float)) and not isinstance(t, bool)
        if not number or not math.isfinite(t):
            raise VideoError(f"a timestamp must be a finite number of seconds, got {t!r}")
        if last is not None and t <= last:
            raise VideoError(f"timestamps must go up: got {t:g} s after {last:g} s")
        last = float(t)
    return [float(t) for t in timestamps]
