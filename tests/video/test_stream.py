"""Frames one by one: the same as all at once, and the same errors."""

import logging
import weakref

import av
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from earlytom.errors import VideoError
from earlytom.video import ReadAhead, Video, container, decode, load_video, pyav, stream_video
from tests.video import clips


def streamed(source, *args, **kwargs):
    """All frames read ahead in the background, put together."""
    with ReadAhead(stream_video(source, *args, **kwargs)) as frames:
        got = list(frames)
    assert len({f.limit for f in got}) == 1
    assert all(f.image.is_contiguous() for f in got)
    times = torch.tensor([f.timestamp for f in got], dtype=torch.float64)
    return torch.stack([f.image for f in got]), times, got[0].limit


def equal(source, *args, **kwargs):
    video = load_video(source, *args, **kwargs)
    frames, times, limit = streamed(source, *args, **kwargs)
    assert torch.equal(frames, video.frames)
    assert torch.equal(times, video.timestamps)
    return video, limit


@pytest.mark.parametrize("n", [1, 2, 7, 200, 300])
def test_equals_load(clip, n):
    video, limit = equal(clip, n)
    assert limit == len(video) == min(n, 200)


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1)])
def test_turned(tmp_path, matrix):
    path = clips.rotate(clips.write(tmp_path / "r.mp4", 20), matrix)
    equal(path, 5)


def test_by_rate_from_bytes_and_files(clip):
    equal(clip, fps=3.7)
    equal(clip, fps=30, max_frames=5)
    equal(clip.read_bytes(), 6)
    with clip.open("rb") as f:
        equal(f, 6)


def test_too_large_to_scan(clip, monkeypatch):
    monkeypatch.setattr(container, "SCAN_BYTES", 0)
    video, _ = equal(clip, 9)
    assert not video.exact_indices


def test_early_end(tmp_path, monkeypatch):
    clips.one_thread(monkeypatch)
    data = clips.write(tmp_path / "f.mp4", 200, faststart=True).read_bytes()
    equal(data[: len(data) * 2 // 3], 8)


def test_damage(tmp_path, caplog, monkeypatch):
    clips.one_thread(monkeypatch)
    data = bytearray(clips.write(tmp_path / "d.mp4", 200, gop=10, faststart=True).read_bytes())
    half = (data.index(b"mdat") + len(data)) // 2
    data[half:] = bytes(len(data) - half)
    with caplog.at_level(logging.WARNING, "earlytom"):
        video, limit = equal(bytes(data), 16)
    assert 1 <= len(video) < limit == 16
    said = [r.message for r in caplog.records if "left out" in r.message]
    assert len(said) == 2
    assert said[0] == said[1]


def failure(read):
    with pytest.raises(VideoError) as caught:
        read()
    return str(caught.value)


def same_failure(source, *args, **kwargs):
    message = failure(lambda: load_video(source, *args, **kwargs))
    assert failure(lambda: streamed(source, *args, **kwargs)) == message
    return message


def test_errors(tmp_path, clip, monkeypatch):
    data = clip.read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.mp4").write_bytes(b"hello world\n" * 200)
    (tmp_path / "list.mp4").write_bytes(b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n")
    for source in (
        tmp_path / "none.mp4",
        tmp_path / "empty.mp4",
        tmp_path / "notes.mp4",
        tmp_path / "list.mp4",
        clips.write_audio(tmp_path / "a.m4a"),
        data[: len(data) // 2],
        b"",
        42,
        "http://h/v.mp4",
    ):
        same_failure(source, 4)
    same_failure(clip, 4, fps=1)
    same_failure(clip, 0)
    same_failure(clip, 4, backend="cv2")
    same_failure(clip, fps=1e6)
    monkeypatch.setattr(pyav, "MAX_BYTES", 10 * 64 * 48 * 3)
    assert "ask for fewer frames" in same_failure(clip, 20)


def test_nothing_decodable(tmp_path):
    data = bytearray(clips.write(tmp_path / "d.mp4", 30, faststart=True).read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    assert "can be decoded" in same_failure(bytes(data), 4)


def test_bad_requests_are_refused_at_the_call(tmp_path):
    with pytest.raises(VideoError, match="no such video"):
        stream_video(tmp_path / "none.mp4")


@pytest.fixture
def containers(monkeypatch):
    """Containers that are open at the moment."""
    now = set()

    class Spy:
        def __init__(self, inner):
            self.inner = inner
            now.add(self)

        def close(self):
            now.discard(self)
            self.inner.close()

        def __getattr__(self, name):
            return getattr(self.inner, name)

    original = av.open
    monkeypatch.setattr(container.av, "open", lambda *a, **k: Spy(original(*a, **k)))
    return now


def test_the_file_is_closed_by_whoever_stops(clip, containers):
    frames = stream_video(clip, 50)
    next(frames)
    assert len(containers) == 1
    frames.close()
    assert not containers

    def fail():
        with ReadAhead(stream_video(clip, 50)) as ahead:
            next(ahead)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not containers
    list(stream_video(clip, 3))
    assert not containers


def test_a_frame_is_gone_before_the_next_is_made(clip, monkeypatch):
    alive, most = set(), []
    upright = pyav.upright

    def counted(*args):
        image = upright(*args)
        alive.add(len(most))
        weakref.finalize(image, alive.discard, len(most))
        most.append(len(alive))
        return image

    monkeypatch.setattr(pyav, "upright", counted)
    for frame in stream_video(clip, 20):
        del frame
    assert most == [1] * 20
    assert not alive


def test_torchcodec_is_used_where_it_can_be(clip, monkeypatch):
    video = load_video(clip, 4)
    monkeypatch.setattr("earlytom.video.loader._torchcodec_usable", lambda: True)
    monkeypatch.setattr("earlytom.video.torchcodec.read", lambda source, sampling: video)
    frames, times, limit = streamed(clip, 4)
    assert torch.equal(frames, video.frames)
    assert torch.equal(times, video.timestamps)
    assert limit == 4
    assert isinstance(video, Video)


@pytest.fixture
def one_thread(monkeypatch):
    clips.one_thread(monkeypatch)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    return [
        clips.write(folder / name, 12, size=(32, 32), gop=5, codec=codec).read_bytes()
        for name, codec in (("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"))
    ]


@settings(
    max_examples=100, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.integers(0, 2),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=30),
    cut=st.floats(0.05, 1),
)
def test_fuzz(small, one_thread, kind, flips, cut):
    data = bytearray(small[kind])
    for place, value in flips:
        data[min(len(data) - 1, int(place * len(data)))] = value
    data = bytes(data[: max(1, int(cut * len(data)))])
    video, message = None, ""
    try:
        video = load_video(data, 5)
    except VideoError as e:
        message = str(e)
    if video is None:
        assert failure(lambda: streamed(data, 5)) == message
        return
    frames, times, _ = streamed(data, 5)
    assert torch.equal(times, video.timestamps)
    assert torch.equal(frames, video.frames)


# ---------------------------------------------------------------------- conversion to RGB
def noise(fmt, width, height, seed):
    rng = np.random.default_rng(seed)
    frame = av.VideoFrame(width, height, fmt)
    for plane in frame.planes:
        plane.update(rng.integers(0, 256, plane.buffer_size, dtype=np.uint8).tobytes())
    return frame


@pytest.mark.parametrize(
    "fmt",
    ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "gray", "rgb24", "bgra", "gbrp",
     "yuv420p10le", "yuva420p", "pal8"],
)  # fmt: skip
def test_one_converter_equals_one_per_frame(fmt):
    """Also when size, format or colours change in mid-stream, whatever ffmpeg had set up."""
    convert = decode.RgbConverter()
    kinds = [(fmt, 64, 48), (fmt, 64, 48), (fmt, 66, 50), ("yuv420p", 64, 48), (fmt, 320, 184)]
    for seed, (kind, width, height) in enumerate([*kinds, *kinds]):
        for size in ((width, height), (40, 30)):
            frame = noise(kind, width, height, seed)
            if seed % 3 == 0 and "yuv" in kind:
                frame.colorspace, frame.color_range = 1, 2  # BT.709, full range
            expected = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
            assert np.array_equal(convert(frame, size), expected)


def test_the_scaler_is_set_up_once(clip, monkeypatch):
    made = []

    class Spy(decode.RgbConverter):
        def __init__(self):
            made.append(self)
            super().__init__()

    monkeypatch.setattr(pyav, "RgbConverter", Spy)
    load_video(clip, 20)
    assert len(made) == 1
