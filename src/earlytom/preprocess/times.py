"""When the sampled frames of a video were seen."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from earlytom.video.types import Video

_CLOCK = 1_000_000  # ticks a second: true times reach the official processors as frame numbers


def frame_times(clip: Video | Tensor) -> list[float]:
    """Return the seconds of every frame; of bare frames, one a second."""
    if isinstance(clip, Video):
        return [float(t) for t in clip.timestamps]
    return [float(t) for t in range(len(clip))]


def sampled_fps(clip: Video | Tensor) -> float:
    """Return how many frames a second were sampled: frames by duration, else by their spacing."""
    if not isinstance(clip, Video):
        return 1.0
    if clip.total_frames and clip.fps > 0:
        return len(clip) / clip.total_frames * clip.fps
    if clip.duration > 0:
        return len(clip) / clip.duration
    times = frame_times(clip)
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 1.0


def official_metadata(clip: Video | Tensor) -> Any:
    """Return what the official video processors want to know of sampled frames.

    They compute times as frame number by rate, which is wrong for files of variable rate; so the
    numbers are given on a clock of microseconds.
    """
    from transformers.video_utils import VideoMetadata

    ticks = [round(t * _CLOCK) for t in frame_times(clip)]
    whole = round(len(clip) / sampled_fps(clip) * _CLOCK)
    return VideoMetadata(
        total_num_frames=whole, fps=float(_CLOCK), duration=whole / _CLOCK, frames_indices=ticks
    )
