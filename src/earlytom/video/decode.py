"""Decoding the frames on screen at given times, seeking only where that skips work."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from earlytom.video.container import packets

logger = logging.getLogger(__name__)

# A seek flushes the decoder and decodes the key frame anew: worth it only if it skips more frames.
MIN_SKIP = 6
# The pixels are the same with any number of threads; waiting for helpers costs more than a frame.
# PyAV before 17 has no such option and uses one.
_ONE_THREAD = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}


class FrameReader:
    """Walks forward through one stream and finds the frame on screen at a time.

    Args:
        container: open PyAV container; the reader moves its position.
        stream: the video stream.
        keys: ascending times of key frames, or None if not known.
        pts: ascending times of all frames, or None if not known.
        wanted: exactly the times that will be asked for; other frames that no frame refers to
            need not be decoded. None decodes all.
        stamped: False counts frames instead of using their (absent) time stamps; no seeking.
    """

    def __init__(
        self,
        container: Any,
        stream: Any,
        *,
        keys: NDArray[np.int64] | None = None,
        pts: NDArray[np.int64] | None = None,
        wanted: frozenset[int] | None = None,
        stamped: bool = True,
    ) -> None:
        self.container, self.stream = container, stream
        self.keys, self.pts, self.wanted, self.stamped = keys, pts, wanted, stamped
        self.errors = 0
        self.decoded = 0
        self.seeks = 0
        stream.thread_type = "AUTO"
        self._restart()

    def at(self, time: int) -> Any | None:
        """Return the last frame shown at or before ``time``, or the first one there is, or None.

        Times must be asked for in ascending order.
        """
        self._approach(time)
        found = self._advance(time)
        if found is None and self.seeks and self.stamped:  # landed behind ``time``: go back
            found = self._go_back(time)
        return found if found is not None else self._ahead

    def frames(self) -> Iterator[Any]:
        """Return all frames from the present place on, instead of asking for times."""
        return self._frames

    # ------------------------------------------------------------------ moving
    def _restart(self) -> None:
        self._frames = self._decode()
        self._held: Any | None = None
        self._ahead: Any | None = None

    def _seek(self, time: int, backward: bool = True) -> bool:
        try:
            self.container.seek(time, stream=self.stream, backward=backward)
        except (av.FFmpegError, OSError, OverflowError) as e:
            logger.debug("seek to %d failed: %s", time, e)
            return False
        self.seeks += 1
        self._restart()
        return True

    def _approach(self, time: int) -> None:
        """Seek if a key frame lies far enough between the present place and ``time``."""
        if not self.stamped:
            return
        here = self._held.pts if self._held is not None else None
        if self.keys is None or self.pts is None:
            gap = float(2 / self.stream.time_base)
            start = self.stream.start_time or 0
            if time - (here if here is not None else start) > gap:
                self._seek(time)
            return
        k = int(np.searchsorted(self.keys, time, side="right")) - 1
        if k < 0:
            return
        key = int(self.keys[k])
        place = -1 if here is None else int(np.searchsorted(self.pts, here))
        if int(np.searchsorted(self.pts, key)) - place > MIN_SKIP:
            self._seek(key)

    def _go_back(self, time: int) -> Any | None:
        """Seek to ever earlier places until the frame shown at ``time`` is reached."""
        start = self.stream.start_time or 0
        step = max(1, int(1 / self.stream.time_base))
        back = time - step
        while back > start:
            if not self._seek(back):
                break
            found = self._advance(time)
            if found is not None:
                return found
            step *= 4
            back -= step
        # The decoding time that some containers seek by may lie before the first frame is shown.
        early = start - int(2 / self.stream.time_base)
        if self._seek(early) or self._seek(early, backward=False):
            return self._advance(time)
        return None

    def _advance(self, time: int) -> Any | None:
        while True:
            if self._ahead is None:
                self._ahead = next(self._frames, None)
            if self._ahead is None or self._ahead.pts > time:
                return self._held
            self._held, self._ahead = self._ahead, None
            if self._held.pts == time:
                return self._held

    # ------------------------------------------------------------------ decoding
    def _decode(self) -> Iterator[Any]:
        """Yield frames from the present place on; damaged packets are counted and skipped."""
        context = self.stream.codec_context
        count = 0
        for packet in packets(self.container, self.stream):
            if self.wanted is not None and packet.size:
                context.skip_frame = "DEFAULT" if packet.pts in self.wanted else "NONREF"
            try:
                frames = packet.decode()
            except (av.FFmpegError, ValueError) as e:
                self.errors += 1
                logger.debug("damaged packet: %s", e)
                continue
            for frame in frames:
                self.decoded += 1
                if frame.is_corrupt:
                    self.errors += 1
                    continue
                if not self.stamped:
                    frame.pts = count
                    count += 1
                elif frame.pts is None:
                    frame.pts = frame.dts
                if frame.pts is not None:
                    yield frame


class RgbConverter:
    """Turns decoded PyAV frames of one stream into RGB images; see :func:`upright`.

    One converter per stream: setting up ffmpeg's scaler costs more than converting a frame, and
    ``frame.to_ndarray`` does it anew for each.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Return ``frame`` as ``[height, width, 3]`` RGB; ``size`` is (width, height)."""
        rgb = self._reformatter.reformat(frame, *size, format="rgb24", **_ONE_THREAD)
        return cast("NDArray[np.uint8]", rgb.to_ndarray())


def upright(frame: Any, size: tuple[int, int], convert: RgbConverter) -> NDArray[np.uint8]:
    """Return ``frame`` as contiguous ``[height, width, 3]`` RGB, turned as its display matrix says.

    Args:
        frame: decoded PyAV frame.
        size: (width, height) as stored, before turning; frames of another size are scaled to it.
        convert: the converter of this stream.
    """
    image = convert(frame, size)
    matrix = display_matrix(frame)
    if matrix is None:
        return np.ascontiguousarray(image)
    a, b, c, d = matrix
    if abs(a) + abs(d) >= abs(b) + abs(c):  # 0 or 180 degrees, perhaps mirrored
        flip_x, flip_y = a < 0, d < 0
    else:  # 90 or 270 degrees, perhaps mirrored: x' = c y, y' = b x
        image, flip_x, flip_y = image.transpose(1, 0, 2), c < 0, b < 0
    return np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def display_matrix(frame: Any) -> Sequence[int] | None:
    """Return ``(a, b, c, d)`` with x' = a x + c y and y' = b x + d y, or None if absent."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            m = np.frombuffer(bytes(data), np.int32)
            if m.size >= 5 and any(m[[0, 1, 3, 4]]):
                return [int(m[i]) for i in (0, 1, 3, 4)]
    return None
