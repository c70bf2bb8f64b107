"""The one entry point of this package."""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any

from earlytom.errors import VideoError
from earlytom.video.sampling import Sampling
from earlytom.video.source import check_source
from earlytom.video.types import Video

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
    if backend not in BACKENDS:
        raise VideoError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    sampling = Sampling(frames, fps, max_frames)
    checked = check_source(source, allow_http)
    if backend == "torchcodec" or (backend == "auto" and checked.path and _torchcodec_usable()):
        from earlytom.video.torchcodec import read

        return read(checked, sampling)
    from earlytom.video import pyav

    return pyav.read(checked, sampling)


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
