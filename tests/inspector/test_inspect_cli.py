"""``earlytom inspect`` from the outside."""

from __future__ import annotations

import json
import sys

import pytest
from typer.testing import CliRunner

from earlytom.cli import app
from earlytom.video import load_video


def run(*args):
    return CliRunner().invoke(app, ["inspect", *map(str, args)])


def test_page_pictures_and_video(clip, folder, tmp_path):
    out, png, mp4 = tmp_path / "r.html", tmp_path / "pics", tmp_path / "o.mp4"
    result = run(
        *(clip, "which colour", "--model", folder, "--frames", 8, "--method", "earlytom"),
        *("--compare", "visionzip, earlytom-official", "--retention-ratio", 0.5),
        *("--out", out, "--png", png, "--mp4", mp4, "--max-new-tokens", 2),
    )
    assert result.exit_code == 0, result.output
    pictures = sorted(p.name for p in png.iterdir())
    assert result.stdout.split() == [str(out), *(str(png / p) for p in _order(pictures)), str(mp4)]
    assert "visionzip-received-attention.png" in pictures
    assert "earlytom-tokens-for-the-language-model.png" in pictures
    assert "which colour" in out.read_text("utf-8")
    shown = load_video(mp4, 8)
    assert (len(shown), shown.total_frames, shown.fps) == (8, 8, 2.0)
    assert shown.width == 3 * 336
    assert not list(tmp_path.glob(".*"))  # nothing half written is left


def _order(names):
    methods = ["earlytom-tokens", "visionzip-tokens", "visionzip-rec", "earlytom-official-tokens"]
    methods += ["earlytom-official-rec"]
    return [next(n for n in names if n.startswith(m)) for m in methods]


def test_json(clip, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = (clip, "--model", folder, "--frames", 8, "--retention-ratio", 0.5, "--json")
    result = run(*args, "--max-new-tokens", 1)
    data = json.loads(result.stdout)
    assert data["files"] == []
    assert not list(tmp_path.iterdir())
    assert data["question"] == "What happens in this video?"
    (method,) = data["methods"]
    assert method["label"] == "afterimage"
    tokens = method["maps"][0]
    assert tokens["counts"] == {"kept": 16, "dropped": 16}
    assert "".join(tokens["states"]).count("k") == method["answer"]["tokens_out"] == 16


def test_default_page(clip, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(clip, "--model", folder, "--frames", 4, "--max-new-tokens", 1)
    assert result.stdout.strip() == "report.html"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_fails_leaves_the_old_one(clip, folder, tmp_path, monkeypatch):
    def fail(found):
        raise KeyboardInterrupt

    out = tmp_path / "r.html"
    out.write_text("old")
    monkeypatch.setattr("earlytom.inspect.render_page", fail)
    args = (clip, "--model", folder, "--frames", 4, "--max-new-tokens", 1, "--out", out)
    assert run(*args).exit_code == 130
    assert out.read_text() == "old"


def test_a_full_disk_is_one_line(clip, folder, tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("earlytom.files.write_text", full)
    args = ("--frames", 4, "--max-new-tokens", 1, "--out", tmp_path / "r.html")
    result = run(clip, "--model", folder, *args)
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("error: cannot write: [Errno 28] No space left on device")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("none.mp4",), "no such video file: none.mp4"),
        (("{folder}/config.json",), "not a video file"),
        (("{clip}", "--method", "magic"), "unknown method 'magic'"),
        (("{clip}", "--method", "none"), "nothing to inspect"),
        (("{clip}", "--compare", "evs,magic"), "unknown method 'magic'"),
        (("{clip}", "--compare", "evs,,tome"), "empty name"),
        (("{clip}", "--retention-ratio", "7"), "retention_ratio must be a number in (0, 1]"),
        (("{clip}", "--frames", "0"), "frames must be an integer >= 1"),
        (("{clip}", "--out", "{tmp}/no/r.html"), "no such folder: {tmp}/no"),
        (("{clip}", "--png", "{tmp}/no/pics"), "no such folder: {tmp}/no"),
        (("{clip}", "--png", "{clip}"), "--png must name a folder"),
        (("{clip}", "--out", "{tmp}/r.txt"), "--out must end in .html"),
        (("{clip}", "--mp4", "{tmp}/r.avi"), "--mp4 must end in .mp4"),
        (("{clip}", "--model", "./none"), "no such model folder: ./none"),
        (("{clip}", "<video>"), "must not contain the placeholder"),
    ],
)
def test_errors_are_one_line(clip, folder, tmp_path, args, message):
    places = {"clip": clip, "folder": folder, "tmp": tmp_path}
    given = [a.format(**places) for a in args]
    if "--model" not in given:
        given += ["--model", str(folder)]
    result = run(*given, "--json")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message.format(**places) in result.stderr
    assert message.format(**places) in json.loads(result.stdout)["error"]


def test_a_missing_extra_is_named(clip, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["earlytom.cli.inspect"], "find_spec", lambda name: None)
    result = run(clip, "--model", folder, "--out", tmp_path / "r.html")
    assert "the page needs jinja2: pip install 'earlytom[report]'" in result.stderr
