"""Reading a video file: decoded in the background while the frames before are preprocessed."""

from __future__ import annotations

import os
from time import perf_counter

import torch

from earlytom.preprocess import Pixels, Preprocessor
from earlytom.video import ReadAhead, Video, load_video, stream_video


def read_clip(
    preprocessor: Preprocessor,
    source: str | os.PathLike[str] | bytes,
    frames: int | None = None,
    *,
    fps: float | None = None,
    allow_http: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[Pixels | Video, float]:
    """Decode sampled frames of a file and preprocess them meanwhile.

    One background thread decodes, the calling thread resizes and normalises; a few frames exist at
    a time. The thread has ended when this returns or raises, Ctrl-C included. A processor that
    takes all frames at once (``Preprocessor.streams``) gets them so: this only decodes.

    Args:
        preprocessor: makes the pixels.
        source: see :func:`earlytom.video.load_video`, as are ``frames``, ``fps``, ``allow_http``.
        frames: frames to sample.
        fps: frames per second to sample instead.
        allow_http: permit http(s) URLs.
        dtype: of the pixels, float32 if None.

    Returns:
        What ``preprocessor`` takes as a video, and the ``perf_counter`` seconds at which the last
        frame was decoded.

    Raises:
        VideoError: as :func:`earlytom.video.load_video`.
    """
    if not preprocessor.streams:
        video = load_video(source, frames, fps=fps, allow_http=allow_http)
        return video, perf_counter()
    stream = stream_video(source, frames, fps=fps, allow_http=allow_http)
    with ReadAhead(stream) as ahead:
        pixels = preprocessor.pixels(ahead, dtype)
    assert ahead.finished is not None  # pixels() has read to the end
    return pixels, ahead.finished
