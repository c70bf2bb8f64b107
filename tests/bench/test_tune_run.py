"""A whole search on the shipped model with a handful of clips."""

import json

import pytest
from typer.testing import CliRunner

from earlytom.bench.answering import Examiner
from earlytom.bench.tune import Limits, TuneConfig
from earlytom.bench.tune.run import draw_candidates
from earlytom.bench.workers import load_model
from earlytom.cli import app
from earlytom.method import Method
from earlytom.registry import load_method
from earlytom.tiny import weights_path

ARGS = ("--questions", 12, "--held-out-questions", 12, "--candidates", 2, "--rungs", 2, "--eta", 2,
        "--resamples", 1000)  # fmt: skip


def run(*args):
    return CliRunner().invoke(app, ["tune", *map(str, args)])


@pytest.fixture(scope="module")
def model():
    return load_model(weights_path())


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("tuning") / "earlytom"
    args = ("--ratio", 0.1, "--ratio", 0.25, "--max-encoder", 0.5, "--out", out, "--json", *ARGS)
    result = run(*args)
    assert result.exit_code == 0, result.output
    return out, args, result


def test_result(searched):
    out, _, result = searched
    data = json.loads(result.stdout)
    assert data == json.loads((out / "tuning.json").read_text())
    check = data["held_out"]
    assert [row["retention_ratio"] for row in check["ratios"]] == [0.1, 0.25]
    mean = check["mean"]
    assert mean["gain"]["value"] == pytest.approx(mean["tuned"] - mean["default"])
    assert mean["gain"]["low"] <= mean["gain"]["value"] <= mean["gain"]["high"]
    assert mean["tuned"] == pytest.approx(sum(row["tuned"] for row in check["ratios"]) / 2)
    assert mean["per_ratio_gain"]["value"] == pytest.approx(mean["per_ratio"] - mean["tuned"])
    assert 0.5 < check["full"] <= 1
    winner = data["candidates_tried"][data["winner"]["name"]]
    assert winner["clips"] == data["search"]["clips"]
    assert all(share <= 0.5 + 1e-6 for share in winner["encoder"].values())
    assert data["search"]["seed"] == 1_000_000
    assert check["seed"] == 2
    # the default costs 0.6: over the limit, so the winner is compared with one that spends as much
    assert data["candidates_tried"]["default"]["out"].startswith("encoder 0.597 > 0.5")
    assert data["candidates_tried"][check["reference"]]["settings"] == {"encoder_budget": 0.49}
    assert all(row["default_cost"]["encoder"] <= 0.5 for row in check["ratios"])


def test_saved_config_is_the_winner(searched):
    out, _, result = searched
    data = json.loads(result.stdout)
    saved = Method.load(out)
    chosen = {
        k: tuple(v) if isinstance(v, list) else v for k, v in data["winner"]["settings"].items()
    }
    assert saved == load_method("earlytom", retention_ratio=0.1, **chosen)
    assert saved.to_dict() == {
        k: tuple(v) if isinstance(v, list) else v for k, v in data["config"].items()
    }


def test_second_call_measures_nothing(searched, monkeypatch):
    out, args, result = searched
    before = (out / "trials.json").stat().st_mtime_ns
    monkeypatch.setattr("earlytom.bench.workers.run_jobs", None)
    again = run(*args)
    assert again.exit_code == 0, again.output
    assert again.stdout == result.stdout
    assert (out / "trials.json").stat().st_mtime_ns == before
    other = run(*args, "--seed", 5)
    assert other.exit_code == 1
    assert "another folder" in other.stderr


def test_grid_only_and_table(tmp_path):
    result = run("--method", "earlytom", "--ratio", 0.25, "--grid", "merge_layers=[1,4],[2]",
                 "--grid-only", "--set", "encoder_budget=0.7", "--no-per-ratio",
                 "--split", "static", "--out", tmp_path, *ARGS)  # fmt: skip
    assert result.exit_code == 0, result.output
    for part in ("held-out clips", "gain (95 %)", "mean", "load_method", "encoder_budget=0.7"):
        assert part in result.stdout
    assert "per ratio" not in result.stdout
    data = json.loads((tmp_path / "tuning.json").read_text())
    tried = [c["settings"].get("merge_layers") for c in data["candidates_tried"].values()]
    assert sorted(filter(None, tried)) == [[1, 4], [2]]
    assert data["config"]["encoder_budget"] == 0.7
    assert list(data["held_out"]["by_split"]) == ["static"]


def test_interrupted_search_ends_like_an_uninterrupted_one(tmp_path, monkeypatch):
    args = ("--method", "random", "--ratio", 0.2, "--grid", "positions=keep,renumber", *ARGS)
    original, left = Examiner.run, iter(range(5))

    def some(self, *rest):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(self, *rest)

    monkeypatch.setattr(Examiner, "run", some)
    result = run(*args, "--out", tmp_path / "a")
    assert result.exit_code == 130
    assert not (tmp_path / "a" / "tuning.json").exists()
    monkeypatch.undo()
    assert run(*args, "--out", tmp_path / "a").exit_code == 0
    assert run(*args, "--out", tmp_path / "b").exit_code == 0
    found = [(tmp_path / name / "tuning.json").read_text() for name in "ab"]
    assert found[0] == found[1]


def test_candidates(model):
    config = TuneConfig(candidates=6, ratios=(0.1,), limits=Limits(encoder=0.5))
    drawn = draw_candidates(config, model)
    assert drawn == draw_candidates(config, model)
    assert next(iter(drawn.items())) == ("default", {})
    assert drawn["default within the limit"] == {"encoder_budget": 0.49}
    assert len(drawn) == 2 + 4 * 6  # spare ones, because some will cost too much
    official = TuneConfig(candidates=6, ratios=(0.1,), fixed={"policy": "official"})
    drawn = draw_candidates(official, model)
    assert len(drawn) == 7
    assert {s["policy"] for n, s in drawn.items() if n != "default"} == {"official"}
    assert all(official.build(s, 0.1).policy == "official" for s in drawn.values())


def test_errors_are_one_line(tmp_path):
    for args, message in (
        (("--method", "holitom"), "no built-in space for holitom"),
        (("--grid", "merge_layers=[40]", "--grid-only"), "no combination"),
        (("--set", "merge_layers=[40]"), "cannot be used as it is"),
        (("--set", "tau=1,2"), "--set takes one value"),
        (("--grid", "tau=1", "--grid", "tau=2"), "given twice"),
        (("--held-out-seed", 1_000_000), "set apart"),
        (("--split", "magic"), "unknown split"),
        (("--max-encoder", 2), "must be in"),
        (("--model", tmp_path), "not a model folder"),
    ):
        result = run("--out", tmp_path / "out", *ARGS, *args)
        assert result.exit_code == 1, args
        assert message in result.stderr
        assert result.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()
