import json

import pytest

from earlytom.bench.contenders import Entry
from earlytom.bench.environment import environment
from earlytom.bench.records import Outcome, Task, save_done, save_unreachable
from earlytom.bench.report import load_runs
from earlytom.bench.suite import build_split
from earlytom.errors import ResultError
from earlytom.methods import EVS, HoliTom
from tests.bench.synthetic import first_right, questions, run, store

GOOD = run("holitom", 0.25, first_right(0.5))


def test_a_run_is_read_as_written(tmp_path):
    record = run("holitom", 0.25, first_right(0.5), written=first_right(0.25), note="a remark")
    store(tmp_path, record)
    ((read,), skipped) = load_runs(tmp_path)
    assert skipped == []
    assert read.key == ("tiny-seed0", "standard", "holitom", 0.25)
    assert (read.seed, read.frames, read.note, read.method) == (1, 16, "a remark", "holitom")
    assert read.questions.correct.sum() == 120
    assert read.questions.open.sum() == 60
    assert read.questions.clip[-1] == 39
    assert read.seconds == {"encode": 0.2, "answer": 0.05}
    assert read.config["knob"] == 3


def test_unreachable_runs_and_missing_measurements_are_read(tmp_path):
    bare = {**GOOD, "time": None, "memory": None, "flops": {"total": None}}
    gone = run("evs", 0.1, [], status="unreachable", note="too small")
    store(tmp_path, bare, gone)
    runs, _ = load_runs(tmp_path)
    by_label = {r.label: r for r in runs}
    assert by_label["evs"].questions is None
    assert by_label["evs"].note == "too small"
    assert by_label["holitom"].seconds == by_label["holitom"].flops == {}


def test_what_the_runner_writes_is_read(tmp_path):
    clips = build_split("standard", seed=1, questions=12)
    outcomes = [
        Outcome(
            correct=[1] * len(c.questions),
            open=[0] * len(c.questions),
            retention=0.25,
            llm_retention=0.2,
            frames_out=8.0,
            flops=(4e8, 1e7, 5e7, 8e8),
            seconds=0.3,
            timed=(0.2, 0.05) if i == 0 else None,
        )
        for i, c in enumerate(clips)
    ]
    model = {"name": "toy", "path": ".", "sha256": "ab", "weights": "random", "parameters": 1}
    for entry in (
        Entry("holitom", 0.25, HoliTom(retention_ratio=0.25), "holitom", note="a note"),
        Entry("evs", 0.125, EVS(retention_ratio=0.125), "evs"),
    ):
        task = Task(entry, "standard", 16, 1, 12, model)
        if entry.label == "evs":
            save_unreachable(task, tmp_path, "too small", environment(1, "float32", "sdpa"))
        else:
            save_done(task, tmp_path, clips, outcomes, environment(1, "float32", "sdpa"))
    runs, _ = load_runs(tmp_path)
    gone, done = sorted(runs, key=lambda r: r.label)
    assert (gone.status, gone.note, gone.ratio) == ("unreachable", "too small", 0.125)
    assert (done.note, done.positions, done.config["method"]) == ("a note", "renumber", "holitom")
    assert done.questions.correct.mean() == 1
    assert done.questions.open.mean() == 0
    assert len(set(done.questions.clip.tolist())) == len(clips)
    assert done.achieved["encoder_compute"] == pytest.approx(0.5)
    assert done.flops["total"] == pytest.approx(4.6e8)
    assert done.seconds == pytest.approx({"encode": 0.2, "answer": 0.05})
    assert done.memory == {}


def without(*keys):
    return {k: v for k, v in GOOD.items() if k not in keys}


def asked(**columns):
    return {**GOOD, "questions": {**GOOD["questions"], **columns}}


BAD = {
    "empty": ("", "not readable as JSON"),
    "half": (json.dumps(GOOD)[:300], "not readable as JSON"),
    "binary": (b"\xff\xfe\x00", "not readable as JSON"),
    "nan": (json.dumps({**GOOD, "retention_ratio": float("nan")}), "NaN is not a number"),
    "deep": ("[" * 100_000, "not readable as JSON"),
    "list": ([1, 2], "not a benchmark run"),
    "foreign": ({"accuracy": 0.5, "model": "x"}, "not a benchmark run"),
    "schema": ({**GOOD, "schema": 2}, "schema 2; this version reads schema 1"),
    "status": ({**GOOD, "status": "running"}, "status must be one of done, unreachable"),
    "no split": (without("split"), "split must be of type str"),
    "no model": (without("model"), "model must be of type dict"),
    "nameless": ({**GOOD, "model": {}}, "name must be of type str"),
    "no questions": (without("questions"), "questions must be of type dict"),
    "true seed": ({**GOOD, "seed": True}, "seed must be of type int"),
    "ratio": ({**GOOD, "retention_ratio": 1.5}, "retention_ratio must be in (0, 1]"),
    "full": ({**GOOD, "label": "full"}, "label 'full' must have retention_ratio 1"),
    "length": (asked(correct=[1, 0]), "equally long"),
    "nothing asked": (asked(clip=[], type=[], correct=[]), "not empty"),
    "not bits": (asked(correct=[2] * 240), "questions.correct must be a list of 0 or 1"),
    "open": (asked(open=3), "questions.open must be a list of 0 or 1"),
    "types": (asked(type=[1] * 240), "questions.type must be a list of names"),
    "accuracy": ({**GOOD, "accuracy": 0.9}, "accuracy 0.9 contradicts its questions (0.5000)"),
    "flops": ({**GOOD, "flops": {"total": "many"}}, "total must be a finite number"),
    "time": ({**GOOD, "time": {"encode_s": 3}}, "encode_s must be of type dict"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_or_skipped(tmp_path, name):
    content, message = BAD[name]
    store(tmp_path, GOOD)
    file = tmp_path / "runs" / "x.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ResultError) as caught:
        load_runs(tmp_path)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    runs, skipped = load_runs(tmp_path, skip_bad=True)
    assert [r.label for r in runs] == ["holitom"]
    assert skipped == [str(caught.value)]


def test_runs_that_do_not_belong_together(tmp_path):
    store(tmp_path, GOOD)
    copy = tmp_path / "runs" / "z.json"
    copy.write_text(json.dumps(GOOD))
    with pytest.raises(ResultError, match=r"z\.json: the same run as .*holitom@0\.25\.json"):
        load_runs(tmp_path)
    for other in (
        run("evs", 0.25, first_right(0.5), seed=2),
        run("evs", 0.25, first_right(0.5), columns=questions(per_clip=3, clips=80)),
        run("evs", 0.25, first_right(0.5, 120), columns=questions(clips=20)),
    ):
        copy.write_text(json.dumps(other))
        with pytest.raises(ResultError, match=r"z\.json: other questions than .*holitom"):
            load_runs(tmp_path)
    copy.write_text(json.dumps({**other, "split": "long"}))
    assert len(load_runs(tmp_path)[0]) == 2


def test_nothing_to_read(tmp_path):
    with pytest.raises(ResultError, match="no such folder"):
        load_runs(tmp_path / "none")
    with pytest.raises(ResultError, match="no run files in"):
        load_runs(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".half.json").write_text("{")  # what an interrupted writer leaves
    with pytest.raises(ResultError, match="no run files in"):
        load_runs(tmp_path)
    (tmp_path / "runs" / "half.json").write_text("{")
    with pytest.raises(ResultError, match=r"no usable run file in .*half\.json"):
        load_runs(tmp_path, skip_bad=True)


def test_other_settings_under_the_same_label_are_refused(tmp_path):
    """A cell is a mean over checkpoints; a method that changed in between must be run again."""
    for model, beta in (("tiny-seed0", 0.6), ("tiny-seed1", 0.7)):
        record = run("holitom", 0.25, first_right(0.5), model=model)
        record["config"] = {**record["config"], "beta": beta}
        store(tmp_path, record)
    with pytest.raises(ResultError, match=r"seed1.*other settings than .*seed0.*\(beta\)"):
        load_runs(tmp_path)
    runs, skipped = load_runs(tmp_path, skip_bad=True)
    assert [r.checkpoint for r in runs] == ["tiny-seed0"]
    assert len(skipped) == 1
    again = run("holitom", 0.10, first_right(0.5), model="tiny-seed1")
    again["config"] = {**again["config"], "beta": 0.7}  # some settings follow the ratio
    store(tmp_path, again)
    assert len(load_runs(tmp_path, skip_bad=True)[0]) == 2
