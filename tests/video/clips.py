"""Small real video files whose frames say which frame they are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from earlytom.video import decode, pyav


def picture(i: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Frame ``i`` [H, W, 3]: four vertical bars of grey spell ``i`` in base 8."""
    w, h = size
    image = np.empty((h, w, 3), np.uint8)
    for k in range(4):
        image[:, k * w // 4 : (k + 1) * w // 4] = (i // 8**k) % 8 * 32 + 16
    return image


def number(image: np.ndarray) -> int:
    """Read the frame number back from a decoded ``[H, W, 3]`` frame."""
    h, w = image.shape[:2]
    digits = []
    for k in range(4):
        bar = image[h // 4 : -h // 4, k * w // 4 + 3 : (k + 1) * w // 4 - 3]
        digits.append(round((float(bar.astype(np.float32).mean()) - 16) / 32))
    return sum(d * 8**k for k, d in enumerate(digits))


def numbers(frames) -> list[int]:
    """Frame numbers of ``[T, H, W, 3]`` frames."""
    return [number(f.numpy()) for f in frames]


def write(
    path: Path | str | io.BytesIO,
    n: int = 40,
    fps: int = 30,
    *,
    gop: int = 12,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    bframes: int = 2,
    pts: Sequence[int] | None = None,
    tick: Fraction | None = None,
    fmt: str | None = None,
    audio: bool = False,
    faststart: bool = False,
) -> Path:
    """Write ``n`` numbered frames; ``pts`` in units of ``tick`` seconds gives a variable rate."""
    target = path if isinstance(path, io.BytesIO) else str(path)
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(target, "w", format=fmt, options=options) as out:
        stream = out.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = tick or Fraction(1, fps)
        context.gop_size = gop
        if codec == "libx264":
            context.options = {"bf": str(bframes), "crf": "8", "preset": "veryfast"}
            context.options |= {"sc_threshold": "0", "threads": "1"}
        else:
            context.bit_rate = 2_000_000
        sound = out.add_stream("aac", rate=16000) if audio else None
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(picture(i, size), format="rgb24")
            frame.pts = pts[i] if pts is not None else i
            frame.time_base = context.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound is not None:
            _sound(out, sound)
    return Path(target) if isinstance(target, str) else Path()


def write_audio(path: Path) -> Path:
    """Write a file with sound only."""
    with av.open(str(path), "w") as out:
        _sound(out, out.add_stream("aac", rate=16000))
    return path


def _sound(out, stream) -> None:
    for i in range(8):
        data = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(data, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, i * 1024
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def rotate(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Patch (a, b, c, d) of the mp4 track display matrix in place, each -1, 0 or 1."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 4 + (32 if data[at] == 1 else 20) + 16
    a, b, c, d = matrix
    one = 0x10000
    for k, value in enumerate((a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000)):
        data[at + 4 * k : at + 4 * k + 4] = int(value).to_bytes(4, "big", signed=True)
    path.write_bytes(bytes(data))
    return path


def one_thread(monkeypatch) -> None:
    """Decode with one thread: ffmpeg's threads do not conceal damage the same way every time."""

    class Reader(decode.FrameReader):
        def _restart(self) -> None:
            if not self.stream.codec_context.is_open:
                self.stream.thread_type = "NONE"
            super()._restart()

    monkeypatch.setattr(pyav, "FrameReader", Reader)
