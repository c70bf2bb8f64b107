"""Opening a container with PyAV, safely: video demuxers only, no nested URLs, one-line errors."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from earlytom.errors import VideoError
from earlytom.video.source import Source

# Playlists (hls, concat), image sequences and text art (tty) are "videos" for ffmpeg, too: a local
# text file could make it read other files or the network. Hence a list of what may be opened.
FORMATS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,ogg,asf,gif,apng,h264,hevc,av1,obu,"
    "ivf,mxf,nut,rm,wtv,dv,yuv4mpegpipe,mjpeg,mpjpeg,vc1,nsv,swf,webp_pipe,png_pipe,jpeg_pipe"
)
SCAN_BYTES = 512 * 2**20
SCAN_PACKETS = 4_000_000
_HTTP_TIMEOUT = 20.0


@dataclass(frozen=True)
class Timeline:
    """When the frames of a stream are shown.

    Attributes:
        pts: ``[n]`` ascending presentation times in ticks; for a stream in which packets lack them
            (raw h264, MPEG program streams, some AVI) simply 0..n-1 at the average rate.
        keys: the ascending subset of ``pts`` at which decoding can start.
        time_base: seconds per tick.
        stamped: False for such a stream.
    """

    pts: NDArray[np.int64]
    keys: NDArray[np.int64]
    time_base: Fraction
    stamped: bool = True


@contextmanager
def opened(source: Source) -> Iterator[tuple[Any, Any]]:
    """Open ``source`` and yield ``(container, video stream)``.

    Raises:
        VideoError: cannot be opened, is not a video container, or has no video stream; also for
            any ffmpeg error that escapes from inside the ``with`` block.
    """
    protocols = "http,https,tcp,tls,crypto" if source.remote else "file"
    options = {"format_whitelist": FORMATS, "protocol_whitelist": protocols}
    target = source.target
    if source.path is not None:
        target = f"file:{source.path}"
    elif not source.remote:
        target.seek(0)
    timeout = _HTTP_TIMEOUT if source.remote else None
    with opened_as(target, source.label, options=options, timeout=timeout) as both:
        yield both


@contextmanager
def opened_as(target: Any, label: str, **how: Any) -> Iterator[tuple[Any, Any]]:
    """Open ``target``, as :func:`opened` does, with arguments for ``av.open``.

    Args:
        target: what PyAV opens.
        label: short name for messages.
        how: ``options`` with white lists, ``timeout`` in seconds, ``format``.
    """
    try:
        container = av.open(target, metadata_errors="replace", **how)
    except (av.FFmpegError, OSError, ValueError, OverflowError, MemoryError) as e:
        raise VideoError(f"cannot open {label}: {_reason(e)}") from e
    try:
        if not container.streams.video:
            kind = "audio only" if container.streams.audio else "no video stream"
            raise VideoError(f"not a video ({kind}): {label}")
        stream = max(container.streams.video, key=_rank)
        if stream.codec_context is None or not stream.time_base:
            raise VideoError(f"no decoder for the video stream of {label}")
        yield container, stream
    except (av.FFmpegError, OSError, ValueError, OverflowError, MemoryError) as e:
        if isinstance(e, VideoError):
            raise
        raise VideoError(f"cannot decode {label}: {_reason(e)}") from e
    finally:
        container.close()


def scan(source: Source) -> Timeline | None:
    """List the presentation times by reading packets without decoding them.

    Returns None for a stream that is too large for this: by file size, by number of packets or
    because it is remote.

    Raises:
        VideoError: no readable packet at all, or ``source`` cannot be opened.
    """
    if source.remote or (source.size or 0) > SCAN_BYTES:
        return None
    pts, keys = array("q"), array("q")
    count = 0
    with opened(source) as (container, stream):
        stamped = container.format.name != "mpeg"  # a program stream stamps only some packets
        time_base = stream.time_base
        rate = stream.average_rate or Fraction(25)
        for packet in packets(container, stream):
            if packet.is_discard or packet.size == 0:
                continue
            if packet.pts is None:
                stamped = False
            if count >= SCAN_PACKETS:
                return None
            count += 1
            if stamped:
                pts.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
    if count == 0:
        raise VideoError(f"no video frame in {source.label} (truncated or damaged file)")
    if not stamped:
        return Timeline(np.arange(count), np.zeros(1, np.int64), 1 / rate, stamped=False)
    return Timeline(
        np.unique(np.frombuffer(pts, np.int64)),
        np.unique(np.frombuffer(keys, np.int64)),
        time_base,
    )


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of ``stream``; a damaged tail ends the stream instead of raising."""
    while True:
        try:
            yield from container.demux(stream)
        except IndexError:
            continue  # a stream that appeared in mid-file: PyAV stumbles over its first packet
        except (av.FFmpegError, OSError, EOFError):
            return
        else:
            return


def _rank(stream: Any) -> tuple[bool, int]:
    """Prefer a real video stream over cover art, then the larger picture."""
    cover = bool(stream.disposition & av.stream.Disposition.attached_pic)
    size = 0 if stream.codec_context is None else stream.width * stream.height
    return not cover, size


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if "Invalid data" in text or isinstance(error, av.error.ArgumentError):
        return "not a video file, or damaged"
    return str(text).splitlines()[0]
