"""Uploads that cannot be used, and what the page has to say about them."""

from __future__ import annotations

from pathlib import Path

import av

SAID = {
    "text": "cannot open notes.mp4: not a video file, or damaged",
    "empty": "empty file: nothing.mp4",
    "cut": "cannot open cut.mp4: not a video file, or damaged",
    "no frames": "no video frame in still.avi (truncated or damaged file)",
    "sound": "not a video (audio only): sound.mp4",
    "playlist": "cannot open list.m3u8: not a video file, or damaged",
}


def write_all(folder: Path, clip: Path) -> dict[str, Path]:
    """Write one file for every key of ``SAID``; ``clip`` is a video to damage."""
    names = ("notes.mp4", "nothing.mp4", "cut.mp4", "still.avi", "sound.mp4", "list.m3u8")
    found = dict(zip(SAID, (folder / n for n in names), strict=True))
    found["text"].write_text("this is not a video\n" * 50)
    found["empty"].write_bytes(b"")
    data = clip.read_bytes()
    found["cut"].write_bytes(data[: len(data) // 3])  # the index is at the end
    _write(found["no frames"], video=True)
    _write(found["sound"], video=False)
    found["playlist"].write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    return found


def _write(path: Path, video: bool) -> None:
    with av.open(str(path), "w") as out:
        if video:
            stream = out.add_stream("mjpeg", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
            out.start_encoding()
            return
        sound = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate, frame.pts = 16000, 0
        frame.planes[0].update(bytes(4096))
        out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
