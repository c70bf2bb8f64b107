"""Runs of the comparison: files, resuming, what cannot be, and the command."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from earlytom.bench import records, runner
from earlytom.bench.contenders import contenders
from earlytom.bench.journal import Journal
from earlytom.bench.records import Outcome
from earlytom.bench.report import load_runs
from earlytom.bench.runner import Plan, compare
from earlytom.cli import app
from earlytom.errors import ConfigError, UnsupportedModelError

METHODS = ("evs", "fastv", "earlytom-official")
NAME = "runs/tiny-seed0/detail/full@1.00.json"
TIMES = ("time", "environment", "memory")


def plan(out: Path, **changes: object) -> Plan:
    values = {"methods": METHODS, "ratios": (0.25,), "splits": ("detail",), "questions": 12}
    return Plan(out=out, **{**values, **changes})


def contents(out: Path) -> dict[str, dict]:
    """Run files without what is measured in seconds."""
    files = sorted((out / "runs").rglob("*.json"))
    read = {str(p.relative_to(out)): json.loads(p.read_text()) for p in files}
    return {n: {k: v for k, v in r.items() if k not in TIMES} for n, r in read.items()}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Clips are drawn once, and one of them is timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "TIMED_CLIPS", 1)
        patch.setattr(runner, "build_split", functools.cache(runner.build_split))
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    compare(plan(out))
    return out


def test_one_file_per_run_that_the_report_can_read(straight):
    names = {p.name for p in (straight / "runs" / "tiny-seed0" / "detail").iterdir()}
    assert names == {"full@1.00.json", *(f"{m}@0.25.json" for m in METHODS)}
    assert [p.name for p in straight.iterdir()] == ["runs"]
    runs, skipped = load_runs(straight)
    assert len(runs) == 4
    assert not skipped
    full = next(r for r in runs if r.label == "full")
    assert full.ratio == 1
    assert full.achieved == {
        "retention": 1, "llm_retention": 1, "frames_out": 16, "encoder_compute": 1,
    }  # fmt: skip
    assert set(full.seconds) == {"encode", "answer"}
    assert full.memory["peak_rss_mib"] > 50
    official = next(r for r in runs if r.label == "earlytom-official")
    assert official.method == "earlytom"
    assert official.config["policy"] == "official"
    assert official.achieved["encoder_compute"] < 1
    assert official.flops["total"] < full.flops["total"]
    assert set(official.environment) >= {"cpu", "torch", "threads", "dtype", "date"}


def test_finished_runs_are_kept_and_missing_ones_made(straight, tmp_path):
    before = contents(straight)
    again = compare(plan(straight))
    assert not again.written
    assert len(again.found) == 4
    lost = next(p for p in again.found if p.name.startswith("evs"))
    lost.write_text('{"schema": 1, "half')
    once_more = compare(plan(straight))
    assert once_more.written == [lost]
    assert contents(straight) == before


def test_other_settings_are_other_runs(straight):
    assert len(compare(plan(straight, methods=("evs",), positions="keep")).written) == 1
    assert compare(plan(straight, methods=("evs",))).written  # put back
    tasks = [
        records.Task(e, "detail", 16, seed, n, {"name": "m", "sha256": sha})
        for e in (runner.Entry("full", 1.0, None),)
        for seed, n, sha in ((1, 6, "a"), (2, 6, "a"), (1, 7, "a"), (1, 6, "b"))
    ]
    assert len({t.fingerprint for t in tasks}) == 4


def test_an_interrupted_run_goes_on_to_the_same_files(straight, tmp_path):
    clips = len(set(contents(straight)[NAME]["questions"]["clip"]))
    assert clips > 2

    def stop(split: str, done: int, total: int, seen: int, of: int) -> None:
        if (seen, of) == (2, clips):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(plan(tmp_path), stop)
    journal = tmp_path / "partial" / "tiny-seed0" / "detail.jsonl"
    lines = [x for x in journal.read_text().splitlines() if x]
    assert len(lines) == 2 * 4
    assert not (tmp_path / "runs").exists()
    with journal.open("a") as file:
        file.write('["cut", 3, {"corr')
    seen = []
    compare(plan(tmp_path), lambda split, done, total, clip, of: seen.append((clip, of)))
    assert [c for c, of in seen if of == clips] == list(range(3, clips + 1))
    assert contents(tmp_path) == contents(straight)
    assert not (tmp_path / "partial").exists()


def test_workers_give_the_same_files(straight, tmp_path):
    compare(plan(tmp_path, workers=2))
    assert contents(tmp_path) == contents(straight)


def test_ratios_that_cannot_be_are_said_or_meant_otherwise(tmp_path):
    result = compare(
        plan(tmp_path, methods=("fastv", "sparsevlm"), ratios=(0.01,), splits=("static",))
    )
    behind = contents(tmp_path)["runs/tiny-seed0/static/fastv@0.01.json"]
    assert behind["status"] == "done"
    assert behind["config"]["budget"] == "behind"
    assert behind["note"].startswith("share kept behind its last pruning point (fastv keeps at")
    assert result.unreachable == []


def test_an_unreachable_run_has_a_file_that_says_why(straight, tmp_path, monkeypatch):
    from earlytom.methods import EVS

    def refuse(self, video):
        raise ConfigError("evs cannot")

    monkeypatch.setattr(EVS, "select_tokens", refuse)
    result = compare(plan(tmp_path, methods=("evs",)))
    assert result.unreachable == [("detail", "evs", 0.25, "evs cannot")]
    record = contents(tmp_path)["runs/tiny-seed0/detail/evs@0.25.json"]
    assert (record["status"], record["note"]) == ("unreachable", "evs cannot")
    assert "questions" not in record
    assert compare(plan(tmp_path, methods=("evs",))).unreachable == result.unreachable
    assert [r.status for r in load_runs(tmp_path)[0]] == ["unreachable", "done"]


def test_a_broken_method_does_not_end_the_others(tmp_path, monkeypatch):
    from earlytom.methods import EVS

    def fail(self, video):
        raise IndexError("a bug")

    monkeypatch.setattr(EVS, "select_tokens", fail)
    result = compare(plan(tmp_path, methods=("evs", "random")))
    assert result.broken == [("detail", "evs", 0.25, "IndexError: a bug")]
    assert {p.name for p in result.written} == {"full@1.00.json", "random@0.25.json"}


def test_journal_round_trip(tmp_path):
    outcome = Outcome([1, 0], [0, 0], 0.25, 0.2, 7, (1e9, 1.5, 2.0, 3.0), 0.5, (0.1, 0.2), 99.0)
    plain = Outcome([1], [1], 1.0, 1.0, 16, (1.0, 1.0, 1.0, 1.0), 0.5)
    journal = Journal(tmp_path / "j.jsonl")
    journal.add([(("run", 3), outcome), (("run", 4), plain)])
    journal.close()
    assert Journal(journal.path).done == {("run", 3): outcome, ("run", 4): plain}
    journal.remove()
    assert not journal.path.exists()


def test_contenders():
    labels = [c.label for c in contenders()]
    assert len(set(labels)) == len(labels)
    assert {"earlytom-budget", "earlytom-official", "earlytom-paper", "evs", "fastv"} <= set(labels)
    assert "compose" not in labels
    assert [c.label for c in contenders(("earlytom",))] == [
        "earlytom-budget", "earlytom-official", "earlytom-paper",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="unknown method 'evz'; there are: all, "):
        contenders(("evz",))


@pytest.mark.parametrize(
    "bad",
    [{"methods": ("nobody",)}, {"ratios": (0.0,)}, {"splits": ("x",)}, {"workers": 0},
     {"positions": "up"}, {"ratios": ()}],
)  # fmt: skip
def test_bad_plans(tmp_path, bad):
    with pytest.raises(ConfigError):
        plan(tmp_path, **bad)


def test_models_that_cannot_be_asked(tmp_path):
    with pytest.raises(ConfigError, match="not a model folder"):
        compare(plan(tmp_path, model=tmp_path))
    from earlytom.tiny.architecture import build_model

    model = build_model(0)
    model.config.video_token_index = model.config.video_token_id = 5
    model.config.image_token_index = model.config.image_token_id = 6
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(UnsupportedModelError, match="is not a tiny model"):
        compare(plan(tmp_path, model=tmp_path / "other"))


def test_command(tmp_path):
    args = ["eval", "--methods", "random,evs", "--ratios", "0.1", "--tasks", "detail"]
    args += ["--limit", "6", "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(app, [*args, "--json"])
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert [(r["label"], r["questions"]) for r in data["runs"]] == [
        ("evs", 6), ("full", 6), ("random", 6),
    ]  # fmt: skip
    assert (data["written"], data["found"], data["failed"]) == (3, 0, [])
    shown = CliRunner().invoke(app, args)
    assert shown.exit_code == 0
    assert "3 runs in" in shown.output
    assert "random" in shown.output
    wrong = CliRunner().invoke(app, [*args, "--ratios", "a"])
    assert wrong.exit_code == 1
    assert "ratios must be numbers" in wrong.output
