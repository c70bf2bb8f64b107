"""The torchcodec backend, against a stand-in with torchcodec's interface and PyAV's pixels."""

import sys
import types
from types import SimpleNamespace

import pytest
import torch

from earlytom.errors import VideoError
from earlytom.video import load_video, loader
from tests.video import clips


class Decoder:
    """What is used of ``torchcodec.decoders.VideoDecoder``."""

    def __init__(self, source, *, dimension_order, seek_mode):
        assert (dimension_order, seek_mode) == ("NHWC", "exact")
        self.all = load_video(source, 4096, backend="pyav")
        n = len(self.all)
        self.metadata = SimpleNamespace(
            num_frames=n,
            average_fps=self.all.fps,
            begin_stream_seconds=0.5,
            end_stream_seconds=0.5 + self.all.duration,
        )

    def get_frames_at(self, indices):
        pts = self.all.timestamps[indices] + 0.5
        return SimpleNamespace(data=self.all.frames[indices], pts_seconds=pts)

    def get_frames_played_at(self, seconds):
        times = torch.tensor(seconds, dtype=torch.float64) - 0.5
        index = torch.searchsorted(self.all.timestamps, times, right=True) - 1
        return self.get_frames_at(index.tolist())


@pytest.fixture
def torchcodec(monkeypatch):
    decoders = types.ModuleType("torchcodec.decoders")
    decoders.VideoDecoder = Decoder
    package = types.ModuleType("torchcodec")
    package.decoders = decoders
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    return decoders


@pytest.mark.usefixtures("torchcodec")
@pytest.mark.parametrize("request_", [{"frames": 7}, {"fps": 2}, {"fps": 60}, {"frames": 500}])
def test_same_frames_as_pyav(clip, request_):
    a = load_video(clip, backend="pyav", **request_)
    b = load_video(clip, backend="torchcodec", **request_)
    assert torch.equal(a.frames, b.frames)
    assert torch.allclose(a.timestamps, b.timestamps, atol=1e-5)
    assert a.indices.tolist() == b.indices.tolist()
    assert clips.numbers(b.frames) == b.indices.tolist()


def test_auto_prefers_it_for_local_files(clip, torchcodec, monkeypatch):
    monkeypatch.setattr(loader, "_torchcodec_usable", lambda: True)
    made = []

    class Spy(Decoder):
        def __init__(self, *args, **kwargs):
            made.append(args)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(torchcodec, "VideoDecoder", Spy)
    load_video(clip, 2)
    load_video(clip.read_bytes(), 2)
    assert len(made) == 1


def test_its_errors_are_ours(clip, torchcodec, monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise RuntimeError("cannot seek\nsecond line")

    monkeypatch.setattr(torchcodec, "VideoDecoder", broken)
    with pytest.raises(VideoError, match=r"cannot seek$"):
        load_video(clip, 2, backend="torchcodec")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://h/v.ts\n")
    with pytest.raises(VideoError, match="not a video"):
        load_video(tmp_path / "list.mp4", 2, backend="torchcodec")


def test_missing(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(VideoError, match="torchcodec cannot be loaded"):
        load_video(clip, backend="torchcodec")
