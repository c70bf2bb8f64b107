"""Decoding skips what it can: seeks, frames nobody refers to, long files, bounded memory."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from earlytom.errors import VideoError
from earlytom.video import container, decode, load_video, pyav
from tests.video import clips


@pytest.fixture
def readers(monkeypatch):
    made = []

    class Spy(decode.FrameReader):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(pyav, "FrameReader", Spy)
    return made


def test_short_gops_are_skipped(tmp_path, readers):
    path = clips.write(tmp_path / "short.mp4", 400, gop=10)
    assert clips.numbers(load_video(path, 5).frames) == [0, 99, 199, 299, 399]
    assert readers[0].seeks == 4
    assert readers[0].decoded < 60


def test_long_gop_is_read_through_once(tmp_path, readers):
    path = clips.write(tmp_path / "long.mp4", 400, gop=1000, bframes=0)
    assert clips.numbers(load_video(path, 5).frames) == [0, 99, 199, 299, 399]
    assert readers[0].seeks == 0
    assert readers[0].decoded <= 400


def test_frames_without_referrers_are_not_decoded(tmp_path, readers):
    path = clips.write(tmp_path / "b.mp4", 200, gop=1000, bframes=3)
    few = load_video(path, 3)
    assert readers[0].decoded < 160
    everything = load_video(path, 200).frames
    assert torch.equal(few.frames, everything[few.indices])


def test_ten_hours(tmp_path, readers):
    minute = [60_000 * i for i in range(600)]
    path = clips.write(tmp_path / "day.mkv", 600, pts=minute, tick=Fraction(1, 1000), gop=5)
    video = load_video(path, 8)
    assert video.duration == pytest.approx(36_000)
    assert clips.numbers(video.frames) == video.indices.tolist()
    assert video.timestamps.tolist() == [60.0 * i for i in video.indices.tolist()]
    assert readers[0].decoded < 80


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.ts", "libx264")],
)
@pytest.mark.parametrize("gop", [10, 500])
def test_files_too_large_to_scan_are_sampled_by_time(tmp_path, monkeypatch, name, codec, gop):
    path = clips.write(tmp_path / name, 300, codec=codec, gop=gop)
    exact = load_video(path, 6)
    monkeypatch.setattr(container, "SCAN_BYTES", 0)
    video = load_video(path, 6)
    assert clips.numbers(video.frames) == exact.indices.tolist()
    assert video.indices.tolist() == exact.indices.tolist()
    assert not video.exact_indices
    assert video.total_frames is None
    assert torch.allclose(video.timestamps, exact.timestamps)
    assert clips.numbers(load_video(path, fps=1).frames) == list(range(0, 300, 30))


def test_memory_is_bounded_by_the_samples(tmp_path):
    path = clips.write(tmp_path / "m.mp4", 400, size=(640, 480), gop=500, codec="mpeg4")
    load_video(path, 4)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        pytest.skip("the peak of memory use cannot be reset here")
    before = _memory("VmRSS")
    video = load_video(path, 4)
    assert video.frames.nbytes == 4 * 640 * 480 * 3
    assert _memory("VmHWM") - before < 80e6  # all frames would be 369 MB


def _memory(key):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{key}:")[1].split()[0])


def test_request_larger_than_memory_is_refused(tmp_path, monkeypatch):
    path = clips.write(tmp_path / "big.mp4", 30)
    monkeypatch.setattr(pyav, "MAX_BYTES", 10 * 64 * 48 * 3)
    with pytest.raises(VideoError, match=r"20 frames of 64x48 need .* fewer frames"):
        load_video(path, 20)
    assert len(load_video(path, 10)) == 10


def test_frames_come_in_order_whatever_the_gaps(tmp_path):
    path = clips.write(tmp_path / "g.mp4", 150, gop=7, bframes=3)
    rng = np.random.default_rng(1)
    everything = load_video(path, 150).frames
    for _ in range(5):
        n = int(rng.integers(2, 150))
        video = load_video(path, n)
        assert torch.equal(video.frames, everything[video.indices])
