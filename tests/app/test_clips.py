import os
import time

import pytest
import torch

from earlytom.app.clips import LENGTHS, make_samples, mosaic, read_upload, sweep
from earlytom.errors import VideoError
from earlytom.video import load_video
from tests.app.bad_files import SAID


def test_samples():
    samples = make_samples(8)
    assert len({s.title for s in samples}) == len(samples) == 8
    for s in samples:
        assert s.video.frames.shape == (8, 112, 112, 3)
        assert len({q.question for q in s.questions}) > 3
    q = samples[0].questions[0]
    assert samples[0].right_answer(f"  {q.question.upper()} ") == q.answer
    assert samples[0].right_answer("what is it?") is None


@pytest.mark.parametrize(("frames", "length"), [(1, 4), (15, 8), (200, 32)])
def test_length_of_samples(frames, length):
    assert length in LENGTHS
    assert len(make_samples(frames)[3].video) == length


def test_mosaic_has_a_frame_of_every_quarter():
    video = make_samples(8)[0].video
    picture = mosaic(video)
    assert picture.shape == (224, 224, 3)
    assert (picture[112:, 112:] == video.frames[7].numpy()).all()
    assert (picture[:112, :112] == video.frames[1].numpy()).all()


def test_upload_is_decoded_like_any_video(clip):
    video, same = read_upload(clip, 8), load_video(clip, 8)
    assert torch.equal(video.frames, same.frames)
    assert torch.equal(video.timestamps, same.timestamps)
    assert video.source == "clip.mp4"


@pytest.mark.parametrize("what", SAID)
def test_bad_upload(bad, what):
    with pytest.raises(VideoError) as e:
        read_upload(bad[what], 8)
    assert str(e.value) == SAID[what]


def test_frames_that_are_too_large(clip):
    size = 8 * 48 * 64 * 3
    assert len(read_upload(clip, 8, size)) == 8
    with pytest.raises(VideoError, match=r"^the frames of clip.mp4 are too large: 64 x 48, of"):
        read_upload(clip, 8, size - 1)


def test_sweep(tmp_path):
    for name in ("old/a.mp4", "new/b.mp4", "own/c.webp", "mixed/old.mp4", "mixed/new.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "link").symlink_to("/etc/passwd")
    before = time.time() - 100
    for path in tmp_path.rglob("*"):
        if "new" not in str(path.relative_to(tmp_path)):
            os.utime(path, (before, before), follow_symlinks=False)
    sweep(tmp_path, 50, {tmp_path / "own", tmp_path / "own" / "c.webp"})
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if not p.is_dir())
    assert left == ["mixed/new.mp4", "new/b.mp4", "own/c.webp"]
    assert not (tmp_path / "link").is_symlink()
    assert os.path.exists("/etc/passwd")
    sweep(tmp_path / "none", 50)
