"""The default backend: PyAV (its wheels bring ffmpeg along)."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from earlytom.errors import VideoError
from earlytom.video.container import Timeline, opened, scan
from earlytom.video.decode import FrameReader, upright
from earlytom.video.sampling import Sampling
from earlytom.video.source import Source
from earlytom.video.types import Video

logger = logging.getLogger(__name__)

MAX_BYTES = 8 * 2**30


def read(source: Source, sampling: Sampling) -> Video:
    """Decode what ``sampling`` asks for.

    Files up to 512 MiB are first scanned packet by packet (no decoding), which gives the exact
    presentation time of every frame. Larger ones are sampled by time with a seek each, so that
    reading does not grow with the length of the file.

    Raises:
        VideoError: see :func:`earlytom.video.load_video`.
    """
    timeline = scan(source)
    with opened(source) as (container, stream):
        if timeline is None:
            start, times = _by_time(stream, container, sampling, source.label)
            reader = FrameReader(container, stream)
        else:
            picked = sampling.pick(timeline.pts, timeline.time_base)
            start, times = int(timeline.pts[0]), timeline.pts[picked]
            reader = FrameReader(
                container,
                stream,
                keys=timeline.keys,
                pts=timeline.pts,
                wanted=frozenset(times.tolist()) if timeline.stamped else None,
                stamped=timeline.stamped,
            )
        pts, frames = _decode(reader, times, source.label)
        return _video(source.label, stream, container, timeline, start, pts, frames)


def _by_time(
    stream: Any, container: Any, sampling: Sampling, label: str
) -> tuple[int, NDArray[np.int64]]:
    start = stream.start_time or 0
    duration = _duration(stream, container)
    if duration <= 0:
        raise VideoError(f"the length of {label} is unknown and it is too large to be scanned")
    rate = stream.average_rate or Fraction(25)
    return start, start + sampling.times(duration, rate, stream.time_base)


def _duration(stream: Any, container: Any) -> int:
    """Return the length in ticks of the stream, 0 if unknown."""
    if stream.duration:
        return int(stream.duration)
    if container.duration:
        return int(Fraction(container.duration, 1_000_000) / stream.time_base)
    return 0


def _decode(
    reader: FrameReader, times: NDArray[np.int64], label: str
) -> tuple[list[int], torch.Tensor]:
    pts: list[int] = []
    out: torch.Tensor | None = None
    size = (0, 0)
    for time in times.tolist():
        frame = reader.at(time)
        if frame is None or (pts and frame.pts <= pts[-1]):
            continue  # damaged: left out, or the frame on screen was taken already
        if out is None:
            size = (frame.width, frame.height)
            _check_bytes(len(times), size, label)
        image = torch.from_numpy(np.ascontiguousarray(upright(frame, size)))
        if out is None:
            out = torch.empty((len(times), *image.shape), dtype=torch.uint8)
        if image.shape != out.shape[1:]:
            continue  # the rotation changes in mid-stream
        out[len(pts)] = image
        pts.append(int(frame.pts))
    if out is None:
        raise VideoError(f"no frame of {label} can be decoded (truncated or damaged file)")
    missing = len(times) - len(pts)
    if missing and reader.errors:
        logger.warning("%s is damaged: %d of %d frames left out", label, missing, len(times))
    return pts, out if not missing else out[: len(pts)].clone()


def _check_bytes(n: int, size: tuple[int, int], label: str) -> None:
    need = n * size[0] * size[1] * 3
    if need > MAX_BYTES:
        raise VideoError(
            f"{n} frames of {size[0]}x{size[1]} need {need / 2**30:.1f} GiB "
            f"(limit {MAX_BYTES / 2**30:.0f} GiB); ask for fewer frames of {label}"
        )


def _video(
    label: str,
    stream: Any,
    container: Any,
    timeline: Timeline | None,
    start: int,
    pts: list[int],
    frames: torch.Tensor,
) -> Video:
    ticks = np.array(pts, dtype=np.int64)
    if timeline is None:
        base, total = stream.time_base, None
        rate = float(stream.average_rate or 0)
        seconds = float(_duration(stream, container) * base)
        index = np.floor((ticks - start) * float(base) * rate + 0.5).astype(np.int64)
    else:
        base, total = timeline.time_base, len(timeline.pts)
        span = (int(timeline.pts[-1]) - start) * base
        exact = (total - 1) / span if span > 0 else stream.average_rate or Fraction(0)
        rate, seconds = float(exact), float(span + (1 / exact if exact else 0))
        index = np.searchsorted(timeline.pts, ticks)
    timestamps = torch.tensor([float(int(t - start) * base) for t in ticks], dtype=torch.float64)
    return Video(
        frames=frames,
        timestamps=timestamps,
        fps=rate,
        duration=seconds,
        indices=torch.from_numpy(np.ascontiguousarray(index)),
        total_frames=total,
        exact_indices=timeline is not None,
        source=label,
    )
