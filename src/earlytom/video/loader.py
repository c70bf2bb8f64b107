"""The entry points of this package."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from earlytom.errors import VideoError
from earlytom.video.sampling import Sampling
from earlytom.video.source import Source, check_source
from earlytom.video.types import Frame, Video

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "pyav", "torchcodec")


def load_video(
    source: str | os.PathLike[str] | bytes | Any,
    frames: int | None = None,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    backend: str = "auto",
    allow_http: bool = False,
) -> Video:
    """Decode sampled frames of a video; only what is needed is decoded and converted.

    Frames that are damaged are left out with a logged warning as long as at least one sampled
    frame can be decoded. Memory is bounded by the sampled frames whatever the length of the file.

    Args:
        source: local path, bytes, binary file object, or an http(s) URL with ``allow_http``.
        frames: take this many frames uniformly, first and last included (default 32); a shorter
            video gives all its frames.
        fps: instead of ``frames``, take this many frames per second.
        max_frames: upper limit for ``fps`` (thinned uniformly).
        backend: ``pyav``, ``torchcodec`` or ``auto`` (torchcodec where it can be imported and the
            source is a local file, else PyAV).
        allow_http: permit http(s) URLs.

    Returns:
        A :class:`Video` with ``frames`` uint8 ``[T, H, W, 3]`` and exact ``timestamps``.

    Raises:
        VideoError: the source is missing, empty, not a video, without video stream, damaged beyond
            use, or the request is out of range.
    """
    sampling, checked, torchcodec = _request(source, frames, fps, max_frames, backend, allow_http)
    if torchcodec:
        from earlytom.video.torchcodec import read

        return read(checked, sampling)
    from earlytom.video import pyav

    return pyav.read(checked, sampling)


def stream_video(
    source: str | os.PathLike[str] | bytes | Any,
    frames: int | None = None,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    backend: str = "auto",
    allow_http: bool = False,
) -> Iterator[Frame]:
    """Give the frames of :func:`load_video` one by one, in order, while decoding goes on.

    The frames are never all in memory, unless the backend is torchcodec (which decodes them in one
    go). :class:`earlytom.video.ReadAhead` decodes in a background thread.

    Args: see :func:`load_video`.

    Returns:
        A generator of :class:`Frame`; ``close`` it if it is not read to its end.

    Raises:
        VideoError: as :func:`load_video`, with the same messages. A bad request or source is
            refused at the call, what is wrong inside of the file when the generator gets there.
    """
    sampling, checked, torchcodec = _request(source, frames, fps, max_frames, backend, allow_http)
    if torchcodec:
        from earlytom.video.torchcodec import read

        return _frames(lambda: read(checked, sampling))
    from earlytom.video import pyav

    return pyav.stream(checked, sampling)


def _request(
    source: object,
    frames: int | None,
    fps: float | None,
    max_frames: int | None,
    backend: str,
    allow_http: bool,
) -> tuple[Sampling, Source, bool]:
    """Check a request; the last value says whether torchcodec is to be used."""
    if backend not in BACKENDS:
        raise VideoError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    sampling = Sampling(frames, fps, max_frames)
    checked = check_source(source, allow_http)
    auto = backend == "auto" and bool(checked.path) and _torchcodec_usable()
    return sampling, checked, backend == "torchcodec" or auto


def _frames(read: Callable[[], Video]) -> Iterator[Frame]:
    video = read()
    for image, timestamp in zip(video.frames, video.timestamps.tolist(), strict=True):
        yield Frame(image, timestamp, len(video))


def _torchcodec_usable() -> bool:
    """Return whether torchcodec is installed and its libraries load."""
    if importlib.util.find_spec("torchcodec") is None:
        return False
    try:
        import torchcodec.decoders  # noqa: F401
    except Exception as e:  # any loader failure means: not usable here
        logger.debug("torchcodec cannot be loaded: %s", e)
        return False
    return True
