"""Small pictures as bytes and data addresses, made with what is there anyway (PyAV, zlib)."""

from __future__ import annotations

import base64
import struct
import zlib
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
SIDES = (384, 320, 256, 192, 144, 112, 80)  # of the longer side of a thumbnail, in pixels
MOST_BYTES = 900_000  # of all thumbnails together; base64 makes a third more of them
# anchors of cividis (Nuñez et al. 2018), which colour-blind readers see like everybody else
CIVIDIS = ((0, 34, 78), (65, 77, 107), (124, 123, 120), (188, 175, 111), (254, 232, 56))


def thumbnails(pictures: Pixels, most: int = MOST_BYTES) -> list[bytes]:
    """Return ``pictures [T, H, W, 3]`` as JPEG, in the largest size that fits into ``most`` bytes.

    The smallest size is returned even if it does not fit.
    """
    found: list[bytes] = []
    for side in SIDES:
        found = [jpeg(x, side) for x in pictures]
        if sum(map(len, found)) <= most:
            break
    return found


def jpeg(picture: Pixels, side: int) -> bytes:
    """Return ``[H, W, 3]`` uint8 as JPEG whose longer side has at most ``side`` pixels."""
    import av

    height, width = picture.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = [max(2, 2 * round(n * scale / 2)) for n in (width, height)]
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    coder: Any = av.CodecContext.create("mjpeg", "w")
    coder.width, coder.height = size
    coder.pix_fmt, coder.time_base = "yuvj420p", Fraction(1, 25)
    coder.options = {"qmin": "3", "qmax": "3"}
    frame = frame.reformat(*size, "yuvj420p", interpolation="AREA")
    frame.pts = 0
    return b"".join(bytes(p) for p in [*coder.encode(frame), *coder.encode(None)])


def png(pixels: Pixels) -> bytes:
    """Return ``[H, W, 3]`` uint8 as PNG."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def heat(values: NDArray[np.float32]) -> Pixels:
    """Colour attention ``[..., height, width]``, relative to the mean, from 1/8 to 8 times it."""
    place = np.log2(np.maximum(values, 1e-6)) / 6 + 0.5
    anchors = np.linspace(0, 1, len(CIVIDIS))
    channels = [np.interp(place, anchors, [c[k] for c in CIVIDIS]) for k in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def address(data: bytes, kind: str) -> str:
    """Return a ``data:`` address of an image; ``kind`` is jpeg or png."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
