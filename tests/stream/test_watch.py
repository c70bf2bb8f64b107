"""``earlytom watch``."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from earlytom.cli import app
from earlytom.stream import Stream
from tests.stream.clips import QUESTION
from tests.video import clips


def run(*args):
    return CliRunner().invoke(app, ["watch", *(str(a) for a in args)])


def lines(*args):
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_answers_come_while_the_video_goes_on(clip, folder):
    args = (clip, QUESTION, "--model", folder, "--fps", 10, "--max-new-tokens", 3)
    *answers, end = lines(*args, "--every", 0.5, "--window", 4)
    assert [a["event"] for a in answers] == ["answer"] * 4
    assert [a["time"] for a in answers] == pytest.approx([0.5, 1.0, 1.5, 1.9])
    assert [a["frames"] for a in answers] == [6, 11, 16, 20]
    assert answers[0]["open_tokens"] == 2  # of a window with two frames: a quarter of 2 x 4
    assert all(a["question"] == QUESTION and len(a["token_ids"]) == 3 for a in answers)
    assert (end["event"], end["frames"], end["parts"], end["dropped"]) == ("end", 20, 5, 0)
    assert end["push"]["count"] == 20
    assert 0 < end["push"]["median"] <= end["push"]["p95"]
    assert end["first_token"]["count"] == 4


def test_once_at_the_end(clip, folder):
    args = (clip, QUESTION, "--model", folder, "--fps", 5, "--max-new-tokens", 3)
    answer, end = lines(*args, "--policy", "official", "--retention-ratio", 0.5)
    assert answer["frames"] == end["frames"] == 10
    answer, end = lines(*args, "--duration", 1)
    assert (answer["frames"], answer["time"]) == (6, 1.0)
    text = run(*args)
    assert text.exit_code == 0, text.output
    for word in ("1.8 s", "frames", "a frame, median", "a frame, p95", "first token", "KV cache"):
        assert word in text.stdout


def test_no_method(clip, folder):
    *_, end = lines(clip, QUESTION, "--model", folder, "--method", "none", "--max-new-tokens", 1)
    assert end["kept_tokens"] + 4 * (end["frames"] - end["finished_frames"]) == 4 * end["frames"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("none.mp4", "x"), "no such video file: none.mp4"),
        (("camera:0", "x"), "give --every or --duration"),
        (("{clip}", "x", "--every", "0"), "every must be a finite number > 0"),
        (("{clip}", "x", "--duration", "nan"), "duration must be a finite number > 0"),
        (("{clip}", "x", "--fps", "0"), "fps must be a finite number > 0"),
        (("{clip}", "x", "--method", "magic"), "unknown method 'magic'"),
        (("{clip}", "x", "--model", "{folder}", "--evict", "none"), "evict must be one of"),
        (("{clip}", "x", "--model", "{folder}", "--window", "0"), "window must be an integer"),
        (("{clip}", "x", "--model", "{folder}", "--positions", "respace"), "needs the length"),
        (("{clip}", "<video>", "--model", "{folder}"), "must not contain the placeholder"),
        (("{cut}", "x", "--model", "{folder}"), "damaged"),
    ],
)
def test_errors_are_one_line(clip, folder, tmp_path, args, message):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[:2000])
    args = [a.format(clip=clip, folder=folder, cut=cut) for a in args]
    result = run(*args)
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.output
    result = run(*args, "--json")
    assert result.exit_code == 1
    written = [json.loads(line) for line in result.stdout.splitlines()]
    assert [w["event"] for w in written if "error" in w] == ["error"]
    assert message in next(w["error"] for w in written if "error" in w)


def test_a_source_that_breaks_off_is_answered_until_there(folder, tmp_path):
    path = clips.write(tmp_path / "v.ts", 60, fmt="mpegts")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    answer, end = lines(path, QUESTION, "--model", folder, "--fps", 10, "--max-new-tokens", 1)
    assert answer["frames"] == end["frames"] < 15


def test_ctrl_c_shows_how_far_it_came(clip, folder, monkeypatch):
    own = Stream.push

    def push(self, *args):
        own(self, *args)
        if self.frames == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stream, "push", push)
    result = run(clip, QUESTION, "--model", folder, "--json")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "interrupted"
    (end,) = map(json.loads, result.stdout.splitlines())
    assert (end["event"], end["frames"], end["first_token"]) == ("end", 3, None)
