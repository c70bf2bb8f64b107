"""The default backend: PyAV (its wheels bring ffmpeg along)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from earlytom.errors import VideoError
from earlytom.video.container import Timeline, opened, scan
from earlytom.video.decode import FrameReader, RgbConverter, upright
from earlytom.video.sampling import Sampling
from earlytom.video.source import Source
from earlytom.video.types import Frame, Video

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
    with session(source, sampling) as reading:
        out: torch.Tensor | None = None
        count = 0
        for image in reading.images():
            if out is None:
                out = torch.empty((reading.limit, *image.shape), dtype=torch.uint8)
            out.numpy()[count] = image  # torch would wake helper threads for every frame
            count += 1
        assert out is not None  # images() raises rather than giving nothing
        return reading.video(out if count == reading.limit else out[:count].clone())


def stream(source: Source, sampling: Sampling) -> Iterator[Frame]:
    """Yield the frames of :func:`read` one by one, in order.

    Raises:
        VideoError: where :func:`read` raises it, with the same message.
    """
    with session(source, sampling) as reading:
        for image in reading.images():
            frame = Frame(torch.from_numpy(image), reading.seconds(reading.pts[-1]), reading.limit)
            del image
            yield frame
            del frame  # before the next one is made


@contextmanager
def session(source: Source, sampling: Sampling) -> Iterator[Session]:
    """Open ``source``, find out which frames ``sampling`` means, and give the session.

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
        yield Session(source.label, reader, timeline, start, times)


class Session:
    """One open video: gives the frames that were asked for and then what is known about them.

    Attributes:
        limit: at most this many images come; fewer if the file is damaged.
        pts: presentation times in ticks of the images given so far.
    """

    def __init__(
        self,
        label: str,
        reader: FrameReader,
        timeline: Timeline | None,
        start: int,
        times: NDArray[np.int64],
    ) -> None:
        self.label, self.timeline = label, timeline
        self.limit = len(times)
        self.pts: list[int] = []
        self._reader, self._start, self._times = reader, start, times
        self._base = reader.stream.time_base if timeline is None else timeline.time_base

    def images(self) -> Iterator[NDArray[np.uint8]]:
        """Yield contiguous RGB images ``[H, W, 3]`` of one size, in order.

        Raises:
            VideoError: no frame can be decoded, or all of them would not fit the memory limit.
        """
        convert = RgbConverter()
        size: tuple[int, int] | None = None
        shape: tuple[int, ...] | None = None
        for time in self._times.tolist():
            frame = self._reader.at(time)
            if frame is None or (self.pts and frame.pts <= self.pts[-1]):
                continue  # damaged: left out, or the frame on screen was taken already
            if size is None:
                size = (frame.width, frame.height)
                _check_bytes(self.limit, size, self.label)
            image = upright(frame, size, convert)
            if image.shape != (shape or image.shape):
                continue  # the rotation changes in mid-stream
            shape = image.shape
            self.pts.append(int(frame.pts))
            del frame
            yield image
            del image
        if not self.pts:
            raise VideoError(f"no frame of {self.label} can be decoded (truncated or damaged file)")
        missing = self.limit - len(self.pts)
        if missing and self._reader.errors:
            logger.warning(
                "%s is damaged: %d of %d frames left out", self.label, missing, self.limit
            )

    def seconds(self, pts: int) -> float:
        """Return the time of ``pts`` after the first frame of the stream, in seconds."""
        return float(int(pts - self._start) * self._base)

    def video(self, frames: torch.Tensor) -> Video:
        """Return the :class:`Video` of all images ``[T, H, W, 3]`` given."""
        stream, container = self._reader.stream, self._reader.container
        ticks = np.array(self.pts, dtype=np.int64)
        if self.timeline is None:
            total = None
            rate = float(stream.average_rate or 0)
            seconds = float(_duration(stream, container) * self._base)
            index = np.floor((ticks - self._start) * float(self._base) * rate + 0.5)
            index = index.astype(np.int64)
        else:
            total = len(self.timeline.pts)
            span = (int(self.timeline.pts[-1]) - self._start) * self._base
            exact = (total - 1) / span if span > 0 else stream.average_rate or Fraction(0)
            rate, seconds = float(exact), float(span + (1 / exact if exact else 0))
            index = np.searchsorted(self.timeline.pts, ticks)
        return Video(
            frames=frames,
            timestamps=torch.tensor([self.seconds(t) for t in self.pts], dtype=torch.float64),
            fps=rate,
            duration=seconds,
            indices=torch.from_numpy(np.ascontiguousarray(index)),
            total_frames=total,
            exact_indices=self.timeline is not None,
            source=self.label,
        )


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


def _check_bytes(n: int, size: tuple[int, int], label: str) -> None:
    need = n * size[0] * size[1] * 3
    if need > MAX_BYTES:
        raise VideoError(
            f"{n} frames of {size[0]}x{size[1]} need {need / 2**30:.1f} GiB "
            f"(limit {MAX_BYTES / 2**30:.0f} GiB); ask for fewer frames of {label}"
        )
