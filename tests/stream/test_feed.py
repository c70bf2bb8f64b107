"""Frames of files and live sources, one by one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from fractions import Fraction
from types import SimpleNamespace

import pytest

from earlytom.errors import ConfigError, VideoError
from earlytom.stream import Feed, feed
from earlytom.video.decode import FrameReader
from tests.video import clips


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """60 frames in two seconds."""
    return clips.write(tmp_path_factory.mktemp("feed") / "clip.mp4", 60)


def read(source, **options):
    feed = Feed(str(source), **options)
    with feed as frames:
        return [(f.time, clips.number(f.image.numpy())) for f in frames], feed


def test_a_file_gives_the_first_frame_of_every_interval(clip):
    frames, feed = read(clip, fps=5)
    assert [n for _, n in frames] == list(range(0, 60, 6))
    assert [t for t, _ in frames] == pytest.approx([i / 5 for i in range(10)])
    assert (feed.live, feed.dropped, feed.damaged) == (False, 0, 0)
    assert [n for _, n in read(clip, fps=1000)[0]] == list(range(60))
    assert [n for _, n in read(clip, fps=0.1)[0]] == [0]


def test_irregular_frames(tmp_path):
    pts = [0, 1, 2, 30, 31, 50]
    path = clips.write(tmp_path / "v.mp4", 6, pts=pts, tick=Fraction(1, 10))
    frames, _ = read(path, fps=1)
    assert [n for _, n in frames] == [0, 3, 5]
    assert [t for t, _ in frames] == pytest.approx([0.0, 3.0, 5.0])


def test_a_file_without_time_stamps(tmp_path):
    path = clips.write(tmp_path / "v.h264", 30, fps=25, fmt="h264")
    frames, _ = read(path, fps=5)
    assert [n for _, n in frames] == [0, 5, 10, 15, 20, 25]


def test_turned_frames_are_upright(tmp_path):
    path = clips.rotate(clips.write(tmp_path / "v.mp4", 3), (0, 1, -1, 0))
    with Feed(str(path)) as frames:
        assert next(frames).image.shape == (64, 48, 3)


def test_damage_in_the_middle_costs_frames_only(tmp_path):
    path = clips.write(tmp_path / "v.ts", 60, fmt="mpegts", gop=10)
    data = bytearray(path.read_bytes())
    middle = slice(len(data) // 3, len(data) // 2)
    data[middle] = b"\x55" * len(data[middle])
    path.write_bytes(data)
    frames, _ = read(path, fps=30)
    assert 20 < len(frames) < 60
    times = [t for t, _ in frames]
    assert times == sorted(set(times))
    assert frames[-1][1] > 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"text, not a video" * 99, "cannot open .*: not a video file, or damaged"),
        ("cut", "not a video file, or damaged|can be decoded"),
        ("audio", "audio only"),
    ],
)
def test_broken_files(tmp_path, clip, content, message):
    path = tmp_path / "v.mp4"
    if content == "audio":
        clips.write_audio(path)
    else:
        path.write_bytes(clip.read_bytes()[:2000] if content == "cut" else content)
    with pytest.raises(VideoError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.mp4", "no such video file"),
        (".", "is a directory"),
        ("https://host/v.mp4", "not a local file"),
        ("concat:a|b", "not a local file"),
        ("/dev/null", "not a regular file"),
    ],
)
def test_sources_that_are_refused(source, message):
    with pytest.raises(VideoError, match=message):
        Feed(source)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), "2", True])
def test_bad_rates(clip, fps):
    with pytest.raises(ConfigError, match="fps must be a finite number > 0"):
        Feed(str(clip), fps=fps)


def test_cameras_and_network_are_live():
    for source in ("camera:0", "/dev/video3", "rtsp://host/x", "RTSPS://host/x"):
        assert Feed(source).live
    with pytest.raises(VideoError, match="cannot open camera:97: "):
        read("camera:97")
    with pytest.raises(VideoError, match=r"cannot open rtsp://127\.0\.0\.1:9/x: "):
        read("rtsp://127.0.0.1:9/x")


def test_a_clock_that_begins_anew_goes_on():
    """Time stamps of a camera that was switched off and on."""
    ticks = [90, 91, 92, 93, 5, 6, 7, 6, 8]
    source = Feed("camera:0", fps=1)
    frames = [SimpleNamespace(pts=t) for t in ticks]
    found = source._due(SimpleNamespace(frames=lambda: iter(frames)), Fraction(1))
    assert [(f.pts, t) for f, t in found] == [
        (90, 0), (91, 1), (92, 2), (93, 3), (5, 4), (6, 5), (7, 6), (8, 7)
    ]  # fmt: skip


# ---------------------------------------------------------------------- live sources
def as_live(clip, monkeypatch, wait=0.0, **options):
    """A feed that plays a file as a camera would: frames do not wait for the reader."""
    own = FrameReader.frames

    def slowly(reader):
        for frame in own(reader):
            time.sleep(wait)
            yield frame

    monkeypatch.setattr(FrameReader, "frames", slowly)
    found = Feed(str(clip), **options)
    found.live = True
    return found


def test_a_slow_reader_gets_the_newest_frame(clip, monkeypatch):
    source = as_live(clip, monkeypatch, wait=0.002, fps=30)
    seen = []
    with source as frames:
        for frame in frames:
            seen.append(clips.number(frame.image.numpy()))
            if len(seen) == 1:
                source._reading._thread.join(10)
    assert seen[-1] == 59
    assert len(seen) + source.dropped == 60
    assert source.dropped > 30


def test_leaving_early_stops_the_thread(clip, monkeypatch):
    for source in (as_live(clip, monkeypatch, wait=0.002, fps=30), Feed(str(clip), fps=30)):
        with source as frames:
            next(frames)
        names = [t.name for t in threading.enumerate()]
        assert not {"earlytom-feed", "earlytom-read"} & set(names)


def test_errors_of_the_thread_reach_the_reader(clip, monkeypatch):
    source = as_live(clip, monkeypatch)
    source._checked = feed.check_source(__file__)
    with pytest.raises(VideoError, match="cannot open"), source as frames:
        list(frames)


@pytest.mark.slow
def test_a_network_stream(tmp_path, monkeypatch):
    """Real RTSP: another process publishes to the address where the feed listens."""
    url = "rtsp://127.0.0.1:8559/live"
    own = feed.opened_as

    def listening(target, label, **how):
        how["options"] |= {"rtsp_flags": "listen", "listen_timeout": "20"}
        return own(target, label, **how)

    monkeypatch.setattr(feed, "opened_as", listening)
    publisher = subprocess.Popen([sys.executable, "-c", PUBLISHER, url])
    try:
        with Feed(url, fps=5) as frames:
            seen = [(f.time, clips.number(f.image.numpy())) for f in frames]
    finally:
        publisher.kill()
        publisher.wait()
    assert len(seen) > 5
    assert seen[-1][1] > 50
    late = [n - 20 * t for t, n in seen]
    assert max(late) - min(late) < 1


PUBLISHER = """
import av, sys, time
from fractions import Fraction
from tests.video.clips import picture
for _ in range(40):
    try:
        out = av.open(sys.argv[1], "w", format="rtsp", options={"rtsp_transport": "tcp"})
        video = out.add_stream("libx264", rate=20)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.options = {"preset": "ultrafast", "tune": "zerolatency"}
        video.codec_context.gop_size = 10
        out.start_encoding()
        break
    except OSError:
        time.sleep(0.5)
for i in range(60):
    frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
    frame.pts, frame.time_base = i, Fraction(1, 20)
    out.mux(video.encode(frame))
    time.sleep(0.05)
out.close()
"""
