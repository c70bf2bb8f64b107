"""Every sampled frame is the right one, with its exact time."""

import io
from fractions import Fraction

import numpy as np
import pytest
import torch

from earlytom.video import Video, load_video
from earlytom.video.sampling import uniform
from tests.video import clips

FILES = [
    ("a.mp4", "libx264", 25),
    ("a.mp4", "libx264", 250),
    ("a.mov", "libx264", 1),
    ("a.mkv", "libx264", 25),
    ("a.webm", "libvpx-vp9", 30),
    ("a.avi", "mpeg4", 12),
    ("a.ts", "libx264", 12),
    ("a.mpg", "mpeg2video", 12),
    ("a.h264", "libx264", 250),
    ("a.flv", "libx264", 25),
]


@pytest.mark.parametrize(("name", "codec", "gop"), FILES)
def test_containers(tmp_path, name, codec, gop):
    path = clips.write(tmp_path / name, 120, codec=codec, gop=gop)
    video = load_video(path, 7)
    assert clips.numbers(video.frames) == video.indices.tolist() == uniform(120, 7).tolist()
    assert video.total_frames == 120
    assert video.exact_indices
    rate = 25 if name == "a.h264" else 30  # a raw stream does not tell its rate
    assert video.fps == pytest.approx(rate, rel=1e-3)
    assert torch.allclose(video.timestamps, video.indices.double() / rate, atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 50, 199, 200, 500])
def test_uniform_counts(clip, n):
    video = load_video(clip, n)
    assert len(video) == min(n, 200)
    assert clips.numbers(video.frames) == video.indices.tolist()
    assert video.frames.dtype == torch.uint8
    assert video.frames.shape[1:] == (48, 64, 3)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
@pytest.mark.parametrize("fps", [0.4, 1, 3, 7.5, 30, 60])
def test_rates(tmp_path, name, fps):
    video = load_video(clips.write(tmp_path / name, 200), fps=fps)
    assert clips.numbers(video.frames) == video.indices.tolist()
    wanted = np.arange(0, 199 / 30 + 1e-9, 1 / fps)
    on_screen = np.unique(np.floor(wanted * 30 + 1e-6).astype(int))
    assert video.indices.tolist() == on_screen.tolist()


def test_rate_with_limit(clip):
    video = load_video(clip, fps=30, max_frames=5)
    assert video.indices.tolist() == uniform(200, 5).tolist()


def test_variable_frame_rate_by_pts(tmp_path):
    rng = np.random.default_rng(0)
    pts = np.cumsum(rng.integers(1, 400, 90)).tolist()
    path = clips.write(tmp_path / "v.mkv", 90, pts=pts, tick=Fraction(1, 1000), gop=20)
    exact = (np.array(pts) - pts[0]) / 1000
    video = load_video(path, 90)
    assert clips.numbers(video.frames) == list(range(90))
    assert np.abs(video.timestamps.numpy() - exact).max() < 1.5e-3  # Matroska counts in ms
    video = load_video(path, fps=2)
    shown = np.searchsorted(exact, np.arange(0, exact[-1], 0.5) + 1e-3, "right") - 1
    assert clips.numbers(video.frames) == np.unique(shown).tolist()


@pytest.mark.parametrize(
    ("matrix", "undo"),
    [
        ((1, 0, 0, 1), lambda x: x),
        ((0, 1, -1, 0), lambda x: torch.rot90(x, 1, (0, 1))),  # shown turned clockwise
        ((-1, 0, 0, -1), lambda x: torch.rot90(x, 2, (0, 1))),
        ((0, -1, 1, 0), lambda x: torch.rot90(x, -1, (0, 1))),
        ((-1, 0, 0, 1), lambda x: x.flip(1)),
        ((1, 0, 0, -1), lambda x: x.flip(0)),
        ((0, 1, 1, 0), lambda x: x.transpose(0, 1)),
    ],
)
def test_display_matrix(tmp_path, matrix, undo):
    path = clips.write(tmp_path / "r.mp4", 100)
    straight = load_video(path, 3)
    turned = load_video(clips.rotate(path, matrix), 3)
    sides = (64, 48) if matrix[0] == 0 else (48, 64)
    assert (turned.height, turned.width) == sides
    for a, b in zip(straight.frames, turned.frames, strict=True):
        assert torch.equal(a, undo(b))


def test_one_frame(tmp_path):
    video = load_video(clips.write(tmp_path / "one.mp4", 1), 32)
    assert video.frames.shape == (1, 48, 64, 3)
    assert video.timestamps.tolist() == [0.0]
    assert video.total_frames == 1


def test_bytes_and_file_objects(clip):
    expected = load_video(clip, 4).frames
    data = clip.read_bytes()
    for source in (data, bytearray(data), memoryview(data), io.BytesIO(data)):
        assert torch.equal(load_video(source, 4).frames, expected)
    with clip.open("rb") as f:
        assert torch.equal(load_video(f, 4).frames, expected)
    assert torch.equal(load_video(str(clip), 4, backend="pyav").frames, expected)


def test_odd_file_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a b.mp4", "100%03d.mp4", "x:y.mp4", "clip?.mp4", "-i.mp4", "ü.mp4"):
        clips.write(tmp_path / "t.mp4", 5).rename(tmp_path / name)
        assert len(load_video(name, 2)) == 2


def test_video_beside_sound(tmp_path):
    path = clips.write(tmp_path / "s.mp4", 30, audio=True)
    assert clips.numbers(load_video(path, 3).frames) == [0, 14, 29]


def test_from_frames():
    frames = torch.zeros(4, 2, 3, 3, dtype=torch.uint8)
    video = Video.from_frames(frames, fps=2)
    assert video.timestamps.tolist() == [0, 0.5, 1, 1.5]
    assert video.duration == 2
    assert len(Video.from_frames([f.numpy() for f in frames])) == 4
