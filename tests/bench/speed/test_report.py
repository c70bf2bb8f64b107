"""Speed results in a report."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from earlytom.bench.report.speed import load_speed, write_speed
from earlytom.bench.speed.run import save
from earlytom.cli import app
from earlytom.errors import ResultError


def test_page_and_pictures(data, tmp_path) -> None:
    path = save(data, tmp_path)
    written = write_speed(load_speed(tmp_path), tmp_path)
    assert {p.name for p in written} == {
        "speed.md",
        f"ttft-{path.stem}.png",
        f"ttft-{path.stem}.svg",
    }
    page = (tmp_path / "speed.md").read_text()
    assert "| afterimage | 25% |" in page
    assert f"ttft-{path.stem}.png" in page
    assert "3 interleaved repeats" in page


def test_accuracy_joins_where_model_and_methods_are_the_same(data, tmp_path) -> None:
    class Known:
        main_split = "standard"

        def cell(self, split, label, ratio):
            return type("Cell", (), {"score": 0.9})() if label in ("full", "afterimage") else None

    save(data, tmp_path)
    names = {p.name for p in write_speed(load_speed(tmp_path), tmp_path, Known())}
    assert sum(n.startswith("accuracy-speed-") for n in names) == 2  # PNG and SVG
    random = data | {"model": {"name": "tiny", "weights": "random"}}
    elsewhere = tmp_path / "random"
    save(random, elsewhere)
    names = {p.name for p in write_speed(load_speed(elsewhere), elsewhere, Known())}
    assert not any(n.startswith("accuracy-speed-") for n in names)


def test_results_of_other_weights_and_schedules_lie_side_by_side(data, tmp_path) -> None:
    random = data | {"model": {"name": "tiny", "weights": "random"}}
    planned = data | {"schedule": {"frames": [6, 4], "layers": None}}
    named = data | {"model": {"name": "llava-onevision-7b", "weights": "random"}}
    names = [save(d, tmp_path).stem.split("_sdpa") for d in (data, random, planned, named)]
    assert [end for _, end in names] == ["", "_random", "_schedule_6_4", ""]


def test_a_folder_of_speed_results_only(data, tmp_path) -> None:
    save(data, tmp_path)
    result = CliRunner().invoke(app, ["report", str(tmp_path), "--no-plots", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"files": [str(tmp_path / "speed.md")]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read"),
        ("[]", "not a result of"),
        ('{"kind": "speed", "schema": 9}', "has schema 9"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message) -> None:
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "x.json").write_text(text)
    with pytest.raises(ResultError, match=message):
        load_speed(tmp_path)


def test_no_results_no_page(tmp_path) -> None:
    assert load_speed(tmp_path) == {}
    assert write_speed({}, tmp_path) == []
