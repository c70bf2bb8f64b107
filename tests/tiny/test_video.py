"""Clips as video files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from earlytom.cli.tiny import app
from earlytom.errors import ConfigError, VideoError
from earlytom.tiny import make_clip, write_video


def decode(path: Path) -> np.ndarray:
    """All frames of a file, ``[N, H, W, 3]``."""
    import av

    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def test_uniform_samples_recover_every_frame(tmp_path: Path) -> None:
    listing = write_video(tmp_path / "a.mp4", 7)
    clip = make_clip(7)
    record = json.loads(listing.read_text())
    frames = decode(tmp_path / "a.mp4")
    assert len(frames) == record["num_frames"] * record["hold"]
    ends = np.linspace(0, len(frames) - 1, 16).round().astype(int)
    middles = ((np.arange(16) + 0.5) * len(frames) / 16).astype(int)
    starts = (np.arange(16) * len(frames) / 16).astype(int)
    for sampled in (frames[ends], frames[middles], frames[starts]):
        error = np.abs(sampled.astype(int) - clip.frames.astype(int))
        assert error.mean((1, 2, 3)).max() < 6
    assert [q["question"] for q in record["questions"]] == [q.question for q in clip.questions]
    assert {p.name for p in tmp_path.iterdir()} == {"a.mp4", "a.json"}


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.mp4"):
        write_video(tmp_path / "a.avi", 0)
    with pytest.raises(ConfigError, match="hold"):
        write_video(tmp_path / "a.mp4", 0, hold=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(VideoError, match="cannot write"):
        write_video(tmp_path / "file" / "a.mp4", 0)


def test_command(tmp_path: Path) -> None:
    target = tmp_path / "b.mp4"
    arguments = ["make-video", str(target), "--seed", "5", "--frames", "8", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["path"] == str(target)
    assert record["num_frames"] == 8
    assert target.is_file()
    assert CliRunner().invoke(app, ["make-video", str(tmp_path / "b.txt")]).exit_code == 1
