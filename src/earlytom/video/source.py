"""What may be opened: regular local files, bytes, binary file objects, and http(s) on request."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earlytom.errors import VideoError

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+[:,]")


@dataclass(frozen=True)
class Source:
    """A checked video source.

    Attributes:
        target: local path, URL, or seekable binary file object.
        label: short name for messages.
        size: bytes, or None for a URL.
        remote: True for http(s).
    """

    target: Any
    label: str
    size: int | None
    remote: bool = False

    @property
    def path(self) -> str | None:
        """The local path, or None."""
        return self.target if isinstance(self.target, str) and not self.remote else None


def check_source(source: object, allow_http: bool = False) -> Source:
    """Turn what the caller gave into a :class:`Source`.

    Strings with a URL or ffmpeg protocol scheme (``http:``, ``rtsp:``, ``concat:``, ``pipe:`` ...)
    are refused unless a file of that very name exists, or it is http(s) and ``allow_http``.

    Raises:
        VideoError: one line saying what is wrong with it.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) == 0:
            raise VideoError("empty video: got 0 bytes")
        return Source(io.BytesIO(bytes(source)), f"<{len(source)} bytes>", len(source))
    if isinstance(source, (str, os.PathLike)):
        return _from_path(source, allow_http)
    if hasattr(source, "read") and hasattr(source, "seek"):
        return _from_file(source)
    raise VideoError(
        f"a video is a path, bytes or a binary file object, got {type(source).__name__}"
    )


def _from_path(source: str | os.PathLike[Any], allow_http: bool) -> Source:
    name = os.fspath(source)
    if not isinstance(name, str):
        raise VideoError(f"a video path is text, got {type(name).__name__}")
    if not name or "\0" in name:
        raise VideoError(f"not a usable video path: {name!r}")
    if isinstance(source, str) and _SCHEME.match(name) and not os.path.exists(name):
        if not name.lower().startswith(("http://", "https://")):
            raise VideoError(f"not a local file (this kind of URL is not supported): {name}")
        if not allow_http:
            raise VideoError(f"not a local file (pass allow_http=True to read URLs): {name}")
        return Source(name, name, None, remote=True)
    try:
        info = os.stat(name)
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        kind = "no such video file" if isinstance(e, FileNotFoundError) else reason
        raise VideoError(f"{kind}: {name}") from e
    if stat.S_ISDIR(info.st_mode):
        raise VideoError(f"is a directory, not a video file: {name}")
    if not stat.S_ISREG(info.st_mode):
        raise VideoError(f"not a regular file: {name}")
    if info.st_size == 0:
        raise VideoError(f"empty file: {name}")
    if not os.access(name, os.R_OK):
        raise VideoError(f"no permission to read: {name}")
    return Source(str(Path(name).absolute()), name, info.st_size)


def _from_file(source: Any) -> Source:
    label = f"<{type(source).__name__}>"
    if isinstance(source, io.TextIOBase):
        raise VideoError("a video file object must be opened in binary mode")
    try:
        with contextlib.suppress(AttributeError):
            if not source.seekable():
                raise VideoError("a video file object must be seekable")
        size = source.seek(0, os.SEEK_END)
        source.seek(0)
    except (OSError, ValueError) as e:
        if isinstance(e, VideoError):
            raise
        raise VideoError(f"cannot read the file object: {e}") from e
    if size == 0:
        raise VideoError(f"empty file object: {label}")
    return Source(source, label, size if isinstance(size, int) else None)
