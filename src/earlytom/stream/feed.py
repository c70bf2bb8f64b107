"""Frames of a file, a camera or a network stream, one by one and for as long as they come."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from earlytom.errors import ConfigError, VideoError
from earlytom.video import ReadAhead
from earlytom.video.container import FORMATS, opened, opened_as
from earlytom.video.decode import FrameReader, RgbConverter, upright
from earlytom.video.source import check_source

_NETWORK = re.compile(r"^rtsps?://", re.IGNORECASE)
_CAMERA = re.compile(r"^(?:camera:(\d+)|/dev/video(\d+))$")
_TIMEOUT = 20.0
_STEP_BACK = 1.0  # seconds; a clock that goes back further has begun anew
_UNSTAMPED = ("h264", "hevc", "m4v", "mpeg", "mpegvideo", "av1", "obu", "vc1")


@dataclass(frozen=True, eq=False)
class FeedFrame:
    """One frame.

    Attributes:
        image: ``[H, W, 3]`` uint8 RGB, upright; all of a feed have one size.
        time: seconds since the first frame.
    """

    image: Tensor
    time: float


class Feed:
    """Reads ``source`` at ``fps`` frames per second; use it once, as a context manager.

    Files are read in a background thread, a few frames ahead, without leaving any out. Cameras and
    RTSP streams do not wait: only their newest frame is kept, older ones that nobody has asked for
    are dropped. Nothing is stored.

    Args:
        source: a file, ``camera:0`` (or ``/dev/video0``), an ``rtsp://`` URL, or an http(s) URL
            with ``allow_http``.
        fps: frames per second to give, at most; the first one at or after every ``1 / fps``
            seconds.
        allow_http: permit http(s) URLs.

    Attributes:
        live: whether the source goes on by itself.
        damaged: packets that could not be decoded.

    Raises:
        VideoError: no such file, or not a file.
        ConfigError: ``fps`` out of range.
    """

    def __init__(self, source: str, fps: float = 2.0, allow_http: bool = False) -> None:
        number = isinstance(fps, (int, float)) and not isinstance(fps, bool)
        if not number or not 0 < fps < float("inf"):
            raise ConfigError(f"fps must be a finite number > 0, got {fps!r}")
        self.source, self.fps = source, Fraction(str(fps))
        self.damaged = 0
        self.live = bool(_NETWORK.match(source) or _CAMERA.match(source))
        self._checked = None if self.live else check_source(source, allow_http)
        self._reading: ReadAhead[FeedFrame] | Newest | None = None

    @property
    def dropped(self) -> int:
        """Frames of a live source that were left out because the reader was slower."""
        return self._reading.dropped if isinstance(self._reading, Newest) else 0

    def __enter__(self) -> Iterator[FeedFrame]:
        frames = self._frames()
        self._reading = Newest(frames) if self.live else ReadAhead(frames)
        return iter(self._reading.__enter__())

    def __exit__(self, *error: Any) -> None:
        assert self._reading is not None
        self._reading.__exit__(*error)

    # ------------------------------------------------------------------ reading
    def _open(self) -> AbstractContextManager[tuple[Any, Any]]:
        if self._checked is not None:
            return opened(self._checked)
        if _NETWORK.match(self.source):
            options = {
                "protocol_whitelist": "rtsp,rtsps,rtp,srtp,tcp,udp,tls,crypto",
                "format_whitelist": f"rtsp,rtp,sdp,{FORMATS}",
                "rtsp_transport": "tcp",
            }
            return opened_as(self.source, self.source, options=options, timeout=_TIMEOUT)
        found = _CAMERA.match(self.source)
        assert found is not None
        target, kind = _device(int(found[1] or found[2]))
        return opened_as(target, self.source, format=kind, timeout=_TIMEOUT)

    def _frames(self) -> Generator[FeedFrame, None, None]:
        with self._open() as (container, stream):
            stamped = container.format.name not in _UNSTAMPED
            reader = FrameReader(container, stream, stamped=stamped)
            if self.live:
                stream.thread_type = "SLICE"  # threads that take whole frames each delay them
            tick = stream.time_base if stamped else 1 / (stream.average_rate or Fraction(25))
            convert = RgbConverter()
            size: tuple[int, int] | None = None
            shape: tuple[int, ...] | None = None
            for frame, time in self._due(reader, tick):
                if size is None:
                    size = (frame.width, frame.height)
                image = torch.from_numpy(upright(frame, size, convert))
                self.damaged = reader.errors
                if tuple(image.shape) == (shape or tuple(image.shape)):  # else: turned midway
                    shape = tuple(image.shape)
                    yield FeedFrame(image, float(time))
            self.damaged = reader.errors
            if shape is None:
                raise VideoError(f"no frame of {self.source} can be decoded (truncated or damaged)")

    def _due(self, reader: FrameReader, tick: Fraction) -> Iterator[tuple[Any, Fraction]]:
        """Yield the frames to give, and their times in seconds, which go up."""
        shift: Fraction | None = None
        last, due = Fraction(-1), Fraction(0)
        for frame in reader.frames():
            time = frame.pts * tick
            if shift is None:
                shift = -time
            elif time + shift < last - Fraction(_STEP_BACK):
                shift = last + 1 / self.fps - time
            time += shift
            if time < due or time <= last:
                continue
            last = time
            due = (time * self.fps // 1 + 1) / self.fps
            yield frame, time


class Newest:
    """Iterates over ``source`` in a background thread and gives the newest item there is.

    Args:
        source: the generator; nobody else may use it.

    Attributes:
        dropped: items that were replaced by newer ones.
    """

    def __init__(self, source: Generator[FeedFrame, None, None]) -> None:
        self.dropped = 0
        self._source = source
        self._changed = threading.Condition()
        self._item: FeedFrame | None = None
        self._error: BaseException | None = None
        self._over = self._stopped = False
        self._thread = threading.Thread(target=self._run, name="earlytom-feed", daemon=True)

    def __enter__(self) -> Newest:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        # the thread may wait for the network: it closes the source when that answers or gives up
        self._stopped = True
        self._thread.join(timeout=1.0)

    def __iter__(self) -> Iterator[FeedFrame]:
        return self

    def __next__(self) -> FeedFrame:
        with self._changed:
            while self._item is None and not self._over:
                self._changed.wait(0.2)  # in slices, so that Ctrl-C gets through everywhere
            item, self._item = self._item, None
            if item is not None:
                return item
            if self._error is not None:
                raise self._error
            raise StopIteration

    def _run(self) -> None:
        try:
            for item in self._source:
                with self._changed:
                    self.dropped += self._item is not None
                    self._item = item
                    self._changed.notify()
                if self._stopped:
                    break
        except BaseException as e:
            self._error = e
        finally:
            self._source.close()
            with self._changed:
                self._over = True
                self._changed.notify()


def _device(number: int) -> tuple[str, str]:
    """Return what PyAV opens as camera ``number``, and its format."""
    if sys.platform == "darwin":
        return str(number), "avfoundation"
    if sys.platform.startswith("linux"):
        return f"/dev/video{number}", "v4l2"
    raise VideoError("cameras are read on Linux and macOS only; use an rtsp:// URL")
