"""Decoding and preprocessing at the same time: same inputs, same errors, nothing left running."""

import os
import signal
import threading
import time
import weakref

import pytest
import torch

from earlytom.errors import EarlyTomError, VideoError
from earlytom.pipeline.overlap import read_clip
from earlytom.preprocess import PixelWriter, Preprocessor, pixels
from earlytom.video import Video, ahead, load_video, pyav
from tests.video import clips

QUESTION = "what colour is the circle"
PATIENCE = 30  # seconds until a test that hangs fails


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    assert not [t for t in threading.enumerate() if t.name == "earlytom-read"]


@pytest.fixture(scope="module")
def own(folder):
    return Preprocessor.from_pretrained(folder, official=False)


def same_inputs(own, source, *args, dtype=None, **kwargs):
    clip, _ = read_clip(own, source, *args, dtype=dtype, **kwargs)
    x = own(load_video(source, *args, **kwargs), QUESTION, dtype=dtype)
    y = own(clip, QUESTION, dtype=dtype)
    assert set(x) == set(y)
    assert all(x[k].dtype == y[k].dtype and torch.equal(x[k], y[k]) for k in x)
    return int(y["pixel_values_videos"].shape[1])


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_same_inputs(own, clip, dtype):
    assert same_inputs(own, clip, 8, dtype=dtype) == 8
    same_inputs(own, clip, fps=3.0, dtype=dtype)
    assert same_inputs(own, clip.read_bytes(), 99, dtype=dtype) == 60


@pytest.mark.parametrize("depth", [1, 2, 3, 50])
def test_any_depth(own, clip, depth, monkeypatch):
    monkeypatch.setattr(ahead.ReadAhead.__init__, "__defaults__", (depth,))
    assert same_inputs(own, clip, 16) == 16


def test_early_end(own, tmp_path, monkeypatch):
    clips.one_thread(monkeypatch)
    data = clips.write(tmp_path / "f.mp4", 200, faststart=True).read_bytes()
    assert 1 <= same_inputs(own, data[: len(data) * 2 // 3], 8) <= 8
    half = (data.index(b"mdat") + len(data)) // 2
    assert 1 <= same_inputs(own, data[:half] + bytes(len(data) - half), 16) < 16


def test_errors(own, tmp_path, clip):
    data = clip.read_bytes()
    (tmp_path / "empty.mp4").touch()
    broken = bytearray(clips.write(tmp_path / "d.mp4", 30, faststart=True).read_bytes())
    start = broken.index(b"mdat") + 4
    broken[start:] = bytes(len(broken) - start)
    for source in (tmp_path / "none.mp4", tmp_path / "empty.mp4", data[: len(data) // 2],
                   b"hello world\n" * 200, bytes(broken)):  # fmt: skip
        with pytest.raises(VideoError) as plain:
            load_video(source, 4)
        with pytest.raises(VideoError) as caught:
            read_clip(own, source, 4)
        assert str(caught.value) == str(plain.value)


def test_both_run_at_the_same_time(own, clip, monkeypatch):
    """The third frame is decoded while the first is resized: else one waits for the other."""
    resizing, decoding = threading.Event(), threading.Event()
    upright, write = pyav.upright, PixelWriter.write
    done = []

    def decode(*args):
        done.append(1)
        if len(done) == 3:
            assert resizing.wait(PATIENCE)
            decoding.set()
        return upright(*args)

    def resize(self, frames):
        if not resizing.is_set():
            resizing.set()
            assert decoding.wait(PATIENCE)
        write(self, frames)

    monkeypatch.setattr(pyav, "upright", decode)
    monkeypatch.setattr(PixelWriter, "write", resize)
    read_clip(own, clip, 8)
    assert len(done) == 8


def test_few_frames_exist_at_a_time(own, clip, monkeypatch):
    alive, most = set(), []
    upright = pyav.upright

    def counted(*args):
        image = upright(*args)
        alive.add(len(most))
        weakref.finalize(image, alive.discard, len(most))
        most.append(len(alive))
        return image

    monkeypatch.setattr(pyav, "upright", counted)
    read_clip(own, clip, 40)
    assert len(most) == 40
    assert max(most) <= ahead.DEPTH
    assert not alive


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_preprocessing_fails(own, clip, monkeypatch, kind):
    def fail(*args):
        raise kind("stop")

    monkeypatch.setattr(pixels, "_resize", fail)
    with pytest.raises(kind, match="stop"):
        read_clip(own, clip, 30)


def test_decoding_fails_in_between(own, clip, monkeypatch):
    upright, count = pyav.upright, []

    def fail(*args):
        count.append(1)
        if len(count) == 5:
            raise OSError("disk gone")
        return upright(*args)

    monkeypatch.setattr(pyav, "upright", fail)
    with pytest.raises(VideoError, match="disk gone") as caught:
        read_clip(own, clip, 30)
    count.clear()
    with pytest.raises(VideoError) as plain:
        load_video(clip, 30)
    assert str(caught.value) == str(plain.value)


def test_interrupt_while_decoding(own, clip, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    upright, stopped, count = pyav.upright, threading.Event(), []
    original = ahead.ReadAhead.__exit__

    def leave(self, *args):
        stopped.set()
        return original(self, *args)

    def interrupted(*args):
        count.append(1)
        if len(count) == 4:
            os.kill(os.getpid(), signal.SIGINT)
            assert stopped.wait(PATIENCE)
        return upright(*args)

    monkeypatch.setattr(pyav, "upright", interrupted)
    monkeypatch.setattr(ahead.ReadAhead, "__exit__", leave)
    try:
        with pytest.raises(KeyboardInterrupt):
            read_clip(own, clip, 30)
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(count) == 4


def test_the_official_processor_gets_frames(folder, clip):
    other = Preprocessor.from_pretrained(folder, official=False)
    other.official = object()
    got, _ = read_clip(other, clip, 6)
    assert isinstance(got, Video)
    assert torch.equal(got.frames, load_video(clip, 6).frames)


def test_answers_are_those_of_frames(qa, clip):
    a = qa.ask(clip, QUESTION, frames=8, max_new_tokens=6)
    b = qa.ask(load_video(clip, 8), QUESTION, max_new_tokens=6)
    assert a.token_ids == b.token_ids
    assert a.to_dict().keys() == b.to_dict().keys()
    with pytest.raises(EarlyTomError, match="placeholder"):
        qa.ask(clip, "what is <video>", frames=4)


def test_times_mean_what_they_say(qa, clip, monkeypatch):
    """A frame that is slow to decode counts as decoding, one slow to resize as what is left."""
    upright, write = pyav.upright, PixelWriter.write
    count = []

    def slow(function):
        def run(*args):
            count.append(1)
            time.sleep(0.4 if len(count) == 6 else 0)
            return function(*args)

        return run

    qa.ask(clip, QUESTION, frames=6, max_new_tokens=1)
    monkeypatch.setattr(pyav, "upright", slow(upright))
    t = qa.ask(clip, QUESTION, frames=6, max_new_tokens=1).timings
    assert t.decode > 0.39
    assert t.preprocess < 0.39
    assert t.decode + t.ttft <= t.total
    monkeypatch.setattr(pyav, "upright", upright)
    monkeypatch.setattr(PixelWriter, "write", slow(write))
    count.clear()
    t = qa.ask(clip, QUESTION, frames=6, max_new_tokens=1).timings
    assert t.preprocess > 0.2  # the decoder may end a little after the last frame
    assert t.decode < 0.39
    assert t.preprocess <= t.ttft
    assert t.decode + t.ttft <= t.total
