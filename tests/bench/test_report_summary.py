import dataclasses
import json

import numpy as np
import pytest

from earlytom.bench.report import load_runs, summarise
from earlytom.bench.report.markdown import render_markdown
from earlytom.errors import ConfigError, ResultError
from tests.bench.synthetic import benchmark, first_right, questions, run, store

REF = "earlytom-official"


def summary_of(folder, *records, **options):
    store(folder, *records)
    return summarise(load_runs(folder)[0], **{"resamples": 500, **options})


def test_numbers_equal_those_worked_out_by_hand(tmp_path):
    # two checkpoints, two clips with four and two questions
    columns = [0, 0, 0, 0, 1, 1], ["color", "count", "color", "count", "color", "count"]
    a, b = {"model": "a", "columns": columns}, {"model": "b", "columns": columns}
    summary = summary_of(
        tmp_path,
        run("full", 1.0, [1, 1, 1, 1, 1, 0], written=[1, 1, 1, 0, 0, 0], **a),
        run("full", 1.0, [1, 1, 1, 0, 1, 1], written=[1, 1, 1, 1, 1, 0], **b),
        run("evs", 0.25, [1, 0, 1, 0, 1, 0], written=[1, 0, 0, 0, 0, 0], cost=0.5, **a),
        run("evs", 0.25, [1, 1, 0, 0, 0, 0], written=[1, 0, 0, 0, 0, 0], cost=0.7, **b),
        run(REF, 0.25, [1, 0, 0, 0, 0, 0], **a),
        run(REF, 0.25, [1, 1, 0, 0, 0, 0], **b),
    )
    cell = summary.cell("standard", "evs", 0.25)
    assert cell.accuracy.value == pytest.approx(5 / 12)
    assert cell.relative.value == pytest.approx(5 / 10)
    assert cell.open_accuracy == pytest.approx(2 / 12)
    assert cell.open_relative == pytest.approx(2 / 8)
    assert cell.by_type == pytest.approx({"color": 4 / 6, "count": 1 / 6})
    assert cell.by_checkpoint == pytest.approx({"a": 3 / 5, "b": 2 / 5})
    assert cell.versus.difference.value == pytest.approx(5 / 12 - 3 / 12)
    assert (cell.rank, summary.cell("standard", REF, 0.25).rank) == (1, 2)
    assert (cell.retention, cell.llm_retention) == pytest.approx((0.25, 0.225))
    assert cell.flops_relative == pytest.approx(0.6)
    assert cell.seconds_relative == pytest.approx(0.6)
    assert cell.seconds == pytest.approx(0.15)
    full = summary.full("standard")
    assert (full.relative.value, full.relative.low, full.relative.high) == (1, 1, 1)
    assert (full.rank, full.versus) == (None, None)
    assert summary.cell("standard", REF, 0.25).versus is None
    assert any("only 2 clips: its intervals are too narrow" in w for w in summary.warnings)
    # every resample is clip 0 twice, clip 1 twice or both: 4/8, 1/4 or 5/12 of evs right
    assert (cell.accuracy.low, cell.accuracy.high) == pytest.approx((1 / 4, 4 / 8))


def test_intervals_hold_the_truth_about_as_often_as_they_say(tmp_path):
    rng = np.random.default_rng(0)
    hits = differences = 0
    trials = 120
    columns = questions(clips=60, per_clip=4)
    for _ in range(trials):
        # questions of one clip go together; the sum of two uniform numbers on [0, 0.5] is
        # below 0.5, 0.6 and 0.8 with probability 0.5, 0.68 and 0.92
        hard = rng.random(60).repeat(4) * 0.5 + rng.random(240) * 0.5
        answers = {
            "full": hard < 0.8,
            "evs": hard < 0.6,
            REF: hard < 0.5,
        }
        records = [run(k, 1.0 if k == "full" else 0.1, v, columns=columns)
                   for k, v in answers.items()]  # fmt: skip
        cell = summary_of(tmp_path, *records).cell("standard", "evs", 0.1)
        hits += cell.relative.low <= 0.68 / 0.92 <= cell.relative.high
        differences += cell.versus.difference.low <= 0.18 <= cell.versus.difference.high
    assert 0.88 <= hits / trials <= 0.99
    assert 0.88 <= differences / trials <= 0.99


def test_marks_rank_and_order(tmp_path):
    better = [1] * 240
    same = first_right(0.6)
    summary = summary_of(
        tmp_path,
        run("full", 1.0, better),
        run(REF, 0.1, same), run(REF, 0.5, better),
        run("twin", 0.1, same), run("twin", 0.5, better),
        run("best", 0.1, first_right(0.9)), run("best", 0.5, better),
        run("worst", 0.1, first_right(0.2)), run("worst", 0.5, first_right(0.3)),
        run("some", 0.1, better),
    )  # fmt: skip
    cells = {x: summary.cell("standard", x, 0.1) for x in summary.labels}
    assert {x: c.rank for x, c in cells.items()} == {
        "some": 1, "best": 2, "twin": 3, REF: 3, "worst": 5}  # fmt: skip
    assert summary.labels == ["best", REF, "twin", "worst", "some"]  # incomplete ones last
    assert cells["best"].versus.significant
    assert cells["best"].versus.difference.low > 0
    assert cells["worst"].versus.significant
    assert cells["worst"].versus.difference.high < 0
    assert not cells["twin"].versus.significant
    assert cells["twin"].versus.p == 1
    for cell in cells.values():
        if cell.versus:
            assert cell.versus.p <= cell.versus.p_holm <= 1
    assert summary.ratios == [0.5, 0.1]


def test_a_method_that_sees_more_than_its_ratio_has_no_rank(tmp_path):
    summary = summary_of(
        tmp_path,
        run("full", 1.0, [1] * 240),
        run(REF, 0.1, first_right(0.5), seen=0.109),
        run("over", 0.1, first_right(0.9), seen=0.3),
    )
    assert summary.labels == [REF, "over"]
    assert summary.cell("standard", "over", 0.1).rank is None
    assert summary.cell("standard", REF, 0.1).rank == 1
    assert summary.best("standard", 0.1) == pytest.approx(0.5)
    table = render_markdown(summary)
    assert "(over)" in table
    assert "**50.0**" in table
    assert "**90.0**" not in table


def test_what_is_missing_is_said(tmp_path):
    summary = summary_of(
        tmp_path,
        run("full", 1.0, first_right(0.9), model="a"),
        run("full", 1.0, first_right(0.8), model="b"),
        run("evs", 0.1, first_right(0.5), model="a"),
        run("half", 0.1, first_right(0.5), model="a"),
        run("half", 0.1, [], model="b", status="unreachable", note="too few frames"),
        run("gone", 0.1, [], model="a", status="unreachable", note="minimum 12 %"),
        run("gone", 0.1, [], model="b", status="unreachable", note="minimum 12 %"),
        run("noted", 0.1, first_right(0.5), model="a", note="approximate"),
        run("noted", 0.1, first_right(0.5), model="b", note="approximate"),
    )
    cell = {x: summary.cell("standard", x, 0.1) for x in summary.labels}
    assert cell["evs"].relative.value == pytest.approx(5 / 9)  # of the checkpoint that ran it
    assert cell["evs"].notes == ("1 of 2 checkpoints (a)",)
    assert cell["half"].notes == ("b: unreachable: too few frames", "1 of 2 checkpoints (a)")
    assert cell["half"].status == "done"
    assert cell["gone"].status == "unreachable"
    assert cell["gone"].notes == ("unreachable: minimum 12 %",)
    assert (cell["gone"].accuracy, cell["gone"].rank, cell["gone"].retention) == (None, None, None)
    assert cell["noted"].notes == ("approximate",)
    assert any("reference 'earlytom-official' was not run" in w for w in summary.warnings)


def test_without_full_runs_there_is_no_relation(tmp_path):
    summary = summary_of(tmp_path, run("evs", 0.1, first_right(0.5)), main_split="other")
    cell = summary.cell("standard", "evs", 0.1)
    assert cell.relative is None
    assert cell.flops_relative is None
    assert cell.score == 0.5
    assert cell.by_checkpoint == {"tiny-seed0": 0.5}
    assert summary.main_split == "standard"
    assert any("no finished run on split 'other'" in w for w in summary.warnings)
    assert any("no full run of tiny-seed0" in w for w in summary.warnings)


def test_a_full_model_that_answers_nothing_gives_no_relation(tmp_path):
    nothing, half = [0] * 240, first_right(0.5)
    summary = summary_of(tmp_path, run("full", 1.0, nothing), run("evs", 0.1, half))
    assert summary.cell("standard", "evs", 0.1).relative is None
    json.dumps(summary.to_dict(), allow_nan=False)


def test_several_machines_are_warned_about(tmp_path):
    records = [run(x, 0.1, first_right(0.5), environment={"cpu": cpu, "date": date})
               for x, cpu, date in (("a", "one", "2026-11-21"), ("b", "one", "2026-11-22T01:02"),
                                    ("c", "two", "2026-11-22"))]  # fmt: skip
    summary = summary_of(tmp_path, *records)
    assert [(e["cpu"], e["runs"]) for e in summary.environments] == [("one", 2), ("two", 1)]
    assert summary.environments[0]["dates"] == ["2026-11-21", "2026-11-22"]
    assert any("several machines" in w for w in summary.warnings)


def test_highlights(tmp_path):
    runs, _ = load_runs(benchmark(tmp_path))
    summary = summarise(runs, resamples=200)
    assert summary.highlighted == ["earlytom", "holitom", "prunevid", "vidcom2", "visionzip",
                                   "earlytom-paper", REF]  # fmt: skip
    assert summarise(runs, resamples=200, highlight=["evs"]).highlighted == ["evs"]
    with pytest.raises(ConfigError, match="at most 6 labels beside the reference"):
        summarise(runs, highlight=[REF, *summary.labels])
    with pytest.raises(ResultError, match="cannot highlight 'none'"):
        summarise(runs, resamples=200, highlight=["none"])


def test_the_same_runs_give_the_same_summary(tmp_path):
    runs, _ = load_runs(benchmark(tmp_path))
    one, two = (summarise(r, resamples=300) for r in (runs, runs[::-1]))
    assert one.to_dict() == two.to_dict()
    assert {c.status for c in one.cells} == {"done", "unreachable"}
    assert all(dataclasses.asdict(c)["split"] in ("standard", "long") for c in one.cells)


def test_nothing_finished(tmp_path):
    with pytest.raises(ResultError, match="no finished run"):
        summary_of(tmp_path, run("evs", 0.1, [], status="unreachable", note="x"))
