"""``earlytom bench`` from the outside."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from earlytom.cli import app

FAST = ("--frames", "2", "--repeats", "1", "--new-tokens", "2", "--ratios", "0.5")


def run(*args):
    return CliRunner().invoke(app, ["bench", *map(str, args)])


def test_table_and_file(tmp_path) -> None:
    result = run(*FAST, "--methods", "earlytom", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "earlytom-budget" in result.stdout
    (file,) = (tmp_path / "speed").iterdir()
    assert len(json.loads(file.read_text())["cases"]) == 2


def test_json_is_all_there_is_on_stdout() -> None:
    result = run(*FAST, "--methods", "afterimage", "--json")
    data = json.loads(result.stdout)
    assert data["kind"] == "speed"
    assert data["file"] is None


def test_the_papers_protocol_can_be_shrunk() -> None:
    result = run(*FAST, "--methods", "earlytom", "--paper", "--merge-schedule", "2,2,1")
    assert result.exit_code == 0, result.output
    assert "paper ms" in result.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--methods", "nonsense"), "unknown method 'nonsense'"),
        (("--arch", "gpt"), "unknown architecture 'gpt'"),
        (("--ratios", "2"), "retention_ratio"),
        (("--ratios", "a"), "ratios must be numbers"),
        (("--merge-layers", "1"), "--merge-layers goes with --merge-schedule"),
        (("--merge-schedule", "a"), "need whole numbers"),
        (("--device", "cuda:99"), "no CUDA device here"),
    ],
)
def test_mistakes_are_one_line(args, message) -> None:
    result = run(*FAST[:6], *args)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
