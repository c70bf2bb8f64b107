"""The search with a made-up objective: no model, no video."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earlytom.bench.tune.ledger import Ledger, Trial
from earlytom.bench.tune.search import (
    DEFAULT,
    FULL,
    LIMITED,
    Limits,
    clip_runs,
    plan_rungs,
    search,
)
from earlytom.errors import ConfigError, ResultError

QUESTIONS = 10
CLIPS = 27


class Objective:
    """Candidates with a known accuracy and cost; counts what is asked of it."""

    def __init__(self, accuracy, encoder=None, broken=(), stop_after=None):
        self.accuracy, self.encoder = accuracy, encoder or {}
        self.broken, self.stop_after = broken, stop_after
        self.calls = []

    def __call__(self, missing):
        for clip, jobs in missing:
            if self.stop_after is not None and len(self.calls) >= self.stop_after:
                raise KeyboardInterrupt
            self.calls += [(clip, job) for job in jobs]
            yield clip, {job: self.trial(*job) for job in jobs}

    def trial(self, name, ratio):
        if name == FULL:
            return Trial("1" * QUESTIONS, 100.0, 200.0)
        if name in self.broken:
            return Trial("", 0.0, 0.0, "does not work")
        value = self.accuracy[name]
        right = value[ratio] if isinstance(value, dict) else value
        encoder = 100 * self.encoder.get(name, 0.5)
        correct = "1" * right + "0" * (QUESTIONS - right)
        return Trial(correct, encoder, encoder + 100 * ratio)


def find(objective, ratios=(0.1, 0.25), limits=None, ledger=None, rungs=3, candidates=None):
    names = list(objective.accuracy)
    plan = plan_rungs(candidates or len(names), CLIPS, rungs)
    return search(names, ratios, plan, limits or Limits(), ledger or Ledger(None), objective)


def seen(objective, name):
    return len({clip for clip, job in objective.calls if job[0] == name})


def many(n=9):
    return {DEFAULT: 3, **{f"c{i}": i for i in range(n)}}


def test_halving_finds_the_best_and_saves_work():
    objective = Objective(many())
    found = find(objective)
    assert found.winner == "c8"
    assert found.finalists[0] == "c8"
    assert seen(objective, "c8") == seen(objective, DEFAULT) == CLIPS
    assert seen(objective, "c0") == 3
    assert found.standings["c0"].out == "left in round 1"
    assert found.standings["c5"].out == "left in round 2"
    assert found.standings["c8"].mean == 0.8
    assert len(objective.calls) == len(set(objective.calls))  # nothing is measured twice


def test_random_search_measures_everybody_on_everything():
    objective = Objective(many())
    assert find(objective, rungs=1).winner == "c8"
    assert all(seen(objective, name) == CLIPS for name in objective.accuracy)


def test_default_is_kept_and_may_win():
    found = find(Objective({DEFAULT: 9, **{f"c{i}": 5 for i in range(8)}}))
    assert found.winner == DEFAULT
    found = find(Objective({DEFAULT: 0, **{f"c{i}": 5 for i in range(8)}}))
    assert found.finalists[-1] == DEFAULT


def test_reference_is_a_default_within_the_limits():
    accuracy = {DEFAULT: 9, LIMITED: 0, **{f"c{i}": 5 for i in range(8)}}
    for cost, reference in ((0.5, DEFAULT), (0.9, LIMITED)):
        found = find(Objective(accuracy, {DEFAULT: cost}), limits=Limits(encoder=0.6))
        assert found.reference == reference
    del accuracy[LIMITED]
    assert find(Objective(accuracy, {DEFAULT: 0.9}), limits=Limits(0.6)).reference == DEFAULT


def test_one_setting_for_all_ratios_and_the_best_of_every_ratio():
    accuracy = {DEFAULT: 1, "low": {0.1: 9, 0.25: 2}, "high": {0.1: 2, 0.25: 10}, "both": 7}
    found = find(Objective(accuracy), rungs=1)
    assert found.winner == "both"
    assert found.per_ratio == {0.1: "low", 0.25: "high"}


def test_equal_accuracy_prefers_less_compute():
    cost = {DEFAULT: 0.7, "a": 0.6, "b": 0.4}
    assert find(Objective(dict.fromkeys(cost, 5), cost), rungs=1).winner == "b"


def test_limits():
    accuracy = {DEFAULT: 1, "dear": 10, "cheap": 5}
    cost = {DEFAULT: 0.5, "dear": 0.9, "cheap": 0.6}
    found = find(Objective(accuracy, cost), limits=Limits(encoder=0.6))
    assert found.winner == "cheap"
    assert found.standings["dear"].out == "encoder 0.900 > 0.6 at ratio 0.1"
    # (60 + 25) / 200 at the larger ratio; the limit holds at every one
    assert find(Objective(accuracy, cost), limits=Limits(total=0.5)).winner == "cheap"
    assert find(Objective(accuracy, cost), limits=Limits(total=0.42)).winner == DEFAULT
    with pytest.raises(ConfigError, match=r"no candidate is within the limits, e.g. encoder"):
        find(Objective(accuracy, cost), limits=Limits(encoder=0.2))
    for bad in (0, 1.5, -1):
        with pytest.raises(ConfigError, match="limit must be in"):
            Limits(encoder=bad)


def test_screening_fills_the_first_round_with_candidates_that_fit():
    n = 12
    accuracy = {DEFAULT: 1, **{f"c{i}": i % 10 for i in range(n)}}
    cost = {f"c{i}": 0.9 if i < 6 else 0.5 for i in range(n)}
    objective = Objective(accuracy, cost)
    found = find(objective, limits=Limits(encoder=0.6), candidates=4)
    assert seen(objective, "c0") == 2
    assert found.standings["c0"].out.startswith("encoder 0.900")
    assert found.standings["c11"].out == "not drawn"
    assert found.standings["c10"].out == "not drawn"
    assert found.winner == "c9"  # among the default and c6..c9


def test_failing_candidates_leave_the_search():
    objective = Objective({DEFAULT: 5, "bad": 10, "good": 6}, broken=("bad",))
    found = find(objective)
    assert found.winner == "good"
    assert found.standings["bad"].out == "does not work"
    assert seen(objective, "bad") == 1


def test_interrupted_search_goes_on(tmp_path):
    path = tmp_path / "deep" / "trials.json"
    whole = Objective(many())
    expected = find(whole)
    stopped = Objective(many(), stop_after=100)
    with pytest.raises(KeyboardInterrupt):
        find(stopped, ledger=Ledger(path, "x"))
    rest = Objective(many())
    found = find(rest, ledger=Ledger(path, "x"))
    assert found == expected
    assert sorted(stopped.calls + rest.calls) == sorted(whole.calls)
    again = Objective(many())
    assert find(again, ledger=Ledger(path, "x")) == expected
    assert again.calls == []
    assert [p.name for p in path.parent.iterdir()] == ["trials.json"]


def test_ledger_of_another_search_is_refused(tmp_path):
    path = tmp_path / "trials.json"
    Ledger(path, "x").save()
    with pytest.raises(ResultError, match="other settings"):
        Ledger(path, "y")
    for text in ("{", "[]", json.dumps({"fingerprint": "x", "trials": {"a": {"0": {"b": 1}}}})):
        path.write_text(text)
        with pytest.raises(ResultError, match="no file of a search"):
            Ledger(path, "x")


def test_progress_reaches_its_total():
    told = []
    search(
        list(many()),
        (0.1,),
        plan_rungs(10, CLIPS, 3),
        Limits(),
        Ledger(None),
        Objective(many()),
        lambda *event: told.append(event),
    )
    assert [stage for stage, done, total in told if done == total].count("round 3 of 3") >= 1
    for stage in {e[0] for e in told}:
        done = [d for s, d, _ in told if s == stage]
        assert done == sorted(done)


@given(st.integers(1, 300), st.integers(1, 400), st.integers(1, 6), st.floats(1.5, 5))
def test_plan(candidates, clips, rungs, eta):
    plan = plan_rungs(candidates, clips, rungs, eta)
    assert 1 <= len(plan) <= rungs
    assert plan[0].entering == candidates
    assert plan[-1].clips == clips
    for before, after in pairwise(plan):
        assert before.clips < after.clips
        assert before.entering >= after.entering
    assert clip_runs(plan) <= candidates * clips


def test_plan_numbers():
    plan = plan_rungs(48, 81, 3)
    assert [(r.entering, r.clips) for r in plan] == [(48, 9), (16, 27), (6, 81)]
    assert clip_runs(plan) == 48 * 9 + 16 * 18 + 6 * 54
    for bad in ((0, 1, 1, 3), (1, 0, 1, 3), (1, 1, 0, 3), (1, 1, 1, 1)):
        with pytest.raises(ConfigError, match="at least 1"):
            plan_rungs(*bad)
