import json
import sys

import pytest
from typer.testing import CliRunner

from earlytom.cli import app
from tests.bench.synthetic import first_right, questions, run, store


@pytest.fixture
def folder(tmp_path):
    store(
        tmp_path,
        run("full", 1.0, [1] * 240),
        run("earlytom-official", 0.1, first_right(0.5)),
        run("holitom", 0.1, first_right(0.8)),
        run("prumerge", 0.1, [], status="unreachable", note="minimum 12 %"),
    )
    return tmp_path


def call(*args):
    return CliRunner().invoke(app, ["report", *map(str, args), "--resamples", "1000"])


def test_report(folder):
    result = call(folder)
    assert result.exit_code == 0, result.output
    for part in ("holitom", "▲ 80.0", "50.0", "unreachable", "report.md", "leaderboard.html"):
        assert part in result.stdout
    assert (folder / "accuracy-retention.png").is_file()
    assert call(folder).exit_code == 0  # its own output does not get in the way


def test_json_and_options(folder, tmp_path):
    out = tmp_path / "elsewhere" / "deep"
    result = call(folder, "--out", out, "--no-plots", "--no-html", "--reference", "holitom",
                  "--json")  # fmt: skip
    data = json.loads(result.stdout)
    assert data["files"] == [str(out / "report.md"), str(out / "summary.json")]
    cells = {c["label"]: c for c in data["cells"]}
    assert cells["holitom"]["relative"]["value"] == pytest.approx(0.8)
    assert cells["earlytom-official"]["versus"]["difference"]["value"] == pytest.approx(-0.3)
    assert cells["prumerge"]["status"] == "unreachable"
    assert not (folder / "report.md").exists()


def test_errors_are_one_line(folder):
    for args, message in (
        ((folder / "none",), "no such folder"),
        ((folder / "runs",), "no run files in"),
        ((folder, "--highlight", "magic"), "cannot highlight 'magic'"),
    ):
        result = call(*args)
        assert result.exit_code == 1
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1
        assert message in result.stderr
        assert message in json.loads(call(*args, "--json").stdout)["error"]


def test_bad_files(folder):
    bad = folder / "runs" / "half.json"
    bad.write_text('{"schema": 1, "label"')
    result = call(folder, "--no-plots")
    assert result.exit_code == 1
    assert f"error: {bad}: not readable as JSON" in result.stderr
    assert not (folder / "report.md").exists()
    result = call(folder, "--no-plots", "--skip-bad")
    assert result.exit_code == 0
    assert f"warning: left out: {bad}: not readable as JSON" in result.stderr
    assert "half.json" in (folder / "report.md").read_text()
    assert "half.json" in (folder / "leaderboard.html").read_text()


@pytest.mark.parametrize(
    ("module", "option"), [("matplotlib", "--no-plots"), ("jinja2", "--no-html")]
)
def test_missing_extra(folder, monkeypatch, module, option):
    monkeypatch.setitem(sys.modules, module, None)
    result = call(folder)
    assert result.exit_code == 1
    assert "pip install 'earlytom[report]'" in result.stderr
    assert option in result.stderr
    assert not (folder / "report.md").exists()
    assert call(folder, option).exit_code == 0


def test_another_model_family_has_a_report_of_its_own(folder):
    fewer = questions(clips=30)
    other = [
        run("full", 1.0, [1] * 180, model="tiny-q", columns=fewer),
        run("evs", 0.1, [1] * 90 + [0] * 90, model="tiny-q", columns=fewer),
    ]
    for record in other:
        record["model"]["family"] = "qwen2_5_vl"
    store(folder, *other)
    result = call(folder, "--highlight", "holitom", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert {c["label"] for c in data["cells"]} == {
        "full",
        "earlytom-official",
        "holitom",
        "prumerge",
    }
    assert data["other_families"]["qwen2_5_vl"]["labels"] == ["evs"]
    page = (folder / "report.md").read_text()
    assert "## Another model family: qwen2_5_vl" in page
    assert "| evs | **50.0** |" in page
    own = (folder / "qwen2_5_vl" / "report.md").read_text()
    assert "evs" in own
    assert "holitom" not in own
    assert (folder / "qwen2_5_vl" / "accuracy-retention.png").is_file()
    shown = call(folder, "--no-plots", "--no-html").stdout
    assert "split standard, qwen2_5_vl" in shown
