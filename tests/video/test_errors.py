"""Whatever is wrong with a source, the answer is one line of VideoError."""

import io
import logging
import os

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earlytom.errors import VideoError
from earlytom.video import Video, load_video
from tests.video import clips


def refused(source, match, **kwargs):
    with pytest.raises(VideoError, match=match) as caught:
        load_video(source, 4, **kwargs)
    assert "\n" not in str(caught.value)


def test_paths(tmp_path, monkeypatch):
    refused(tmp_path / "none.mp4", "no such video file")
    refused("", "not a usable video path")
    refused("a\0b", "not a usable video path")
    refused(tmp_path, "is a directory")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "empty file")
    os.mkfifo(tmp_path / "pipe.mp4")
    refused(tmp_path / "pipe.mp4", "not a regular file")
    refused("/dev/zero", "not a regular file")
    refused(b"", "0 bytes")
    refused(io.BytesIO(), "empty file object")
    refused(io.StringIO("text"), "binary mode")
    refused(42, "a video is a path, bytes")
    refused(None, "a video is a path, bytes")


@pytest.mark.parametrize(
    "url",
    ["http://h/v.mp4", "https://h/v.mp4", "rtsp://h/v", "ftp://h/v.mp4", "file:///etc/passwd",
     "concat:a.mp4|b.mp4", "pipe:0", "data:video/mp4;base64,AA", "subfile,,start,0,end,9,,:/etc/x"],
)  # fmt: skip
def test_urls_are_refused(url):
    refused(url, "not a local file")


def test_http_only_on_request():
    refused("https://h.invalid/v.mp4", "allow_http=True")
    refused("rtsp://h.invalid/v.mp4", "not supported", allow_http=True)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"hello world\n" * 200),
        ("notes.mp4", b"hello world\n" * 200),
        ("random.mp4", np.random.default_rng(0).bytes(5000)),
        ("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n"),
        ("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://h/v.ts\n"),
        ("list.ffconcat", b"ffconcat version 1.0\nfile clip.mp4\n"),
        ("page.html", b"<html><body>video</body></html>"),
        ("archive.zip", b"PK\x03\x04" + bytes(100)),
    ],
)
def test_not_a_video(tmp_path, clip, name, content):
    (tmp_path / "clip.mp4").write_bytes(clip.read_bytes())
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "not a video|cannot open|no video frame")


def test_audio_only(tmp_path):
    refused(clips.write_audio(tmp_path / "a.m4a"), "audio only")


def test_zero_frames(tmp_path):
    with av.open(str(tmp_path / "z.mkv"), "w") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width = stream.height = 64
        out.start_encoding()
    refused(tmp_path / "z.mkv", "no video frame|End of file")


def test_truncated_index_at_the_end(clip):
    data = clip.read_bytes()
    refused(data[: len(data) // 2], "cannot open")  # the index of a plain mp4 is its tail


def test_truncated_keeps_what_is_there(tmp_path):
    data = clips.write(tmp_path / "f.mp4", 200, faststart=True).read_bytes()
    video = load_video(data[: len(data) * 2 // 3], 8)
    assert 1 <= len(video) <= 8
    assert clips.numbers(video.frames)[0] == 0


def test_damage_is_logged_and_left_out(tmp_path, caplog):
    data = bytearray(clips.write(tmp_path / "d.mp4", 200, gop=10, faststart=True).read_bytes())
    start = data.index(b"mdat")
    data[start + (len(data) - start) // 2 :] = bytes(len(data) - start - (len(data) - start) // 2)
    with caplog.at_level(logging.WARNING, "earlytom"):
        video = load_video(bytes(data), 16)
    assert 1 <= len(video) < 16
    assert "frames left out" in caplog.text


def test_backend_and_request(clip):
    refused(clip, "backend must be one of", backend="cv2")
    with pytest.raises(VideoError, match="not both"):
        load_video(clip, 4, fps=1)


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(2, 3, 4), torch.zeros(0, 4, 4, 3, dtype=torch.uint8), [], None,
     torch.zeros(2, 4, 4, 3), torch.zeros(1, 4, 4, 4, dtype=torch.uint8), "abc"],
)  # fmt: skip
def test_bad_frames(frames):
    with pytest.raises(VideoError):
        Video.from_frames(frames)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    files = {}
    for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")):
        files[name] = clips.write(folder / name, 12, size=(32, 32), gop=5, codec=codec).read_bytes()
    return files


@settings(
    max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from(["a.mp4", "a.mkv", "a.avi"]),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=30),
    cut=st.floats(0.05, 1),
    header=st.booleans(),
)
def test_fuzz(small, name, flips, cut, header):
    data = bytearray(small[name])
    if name == "a.mp4" and header:  # the index box, where a flip does most harm
        low = data.index(b"moov")
    else:
        low = 0
    for place, value in flips:
        data[min(len(data) - 1, low + int(place * (len(data) - low)))] = value
    data = data[: max(1, int(cut * len(data)))] if not header else data
    message, video = "", None
    try:
        video = load_video(bytes(data), 5)
    except VideoError as e:
        message = str(e)
    assert "\n" not in message
    if video is not None:
        assert 1 <= len(video) <= 5
        assert (torch.diff(video.timestamps) > 0).all()
