"""Generated clips as an lmms-eval task: files, rows, command."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from earlytom.cli import app
from earlytom.errors import ConfigError, VideoError
from earlytom.tiny import make_clip, write_lmms_task
from earlytom.tiny.lmms_task import CHOICE_TASK, TASK
from earlytom.video import load_video


def test_files(tmp_path):
    done = []
    rows = write_lmms_task(
        tmp_path / "task", 3, questions=4, seed=5, num_frames=4, progress=done.append
    )
    stored = [json.loads(s) for s in (tmp_path / "task/questions.jsonl").read_text().splitlines()]
    assert rows == stored
    assert done == [1, 2, 3]
    assert len({r["id"] for r in rows}) == len(rows) <= 12
    for i in range(3):
        clip = make_clip(5 + i, 4)
        asked = {(q.question, q.answer, q.candidates) for q in clip.questions}
        mine = [r for r in rows if r["id"].startswith(f"clip_{i:03d}_")]
        assert 1 <= len(mine) <= 4
        assert all((r["question"], r["answer"], tuple(r["candidates"])) in asked for r in mine)
        assert all(r["answer"] in r["candidates"] for r in mine)
        kinds = {q.type for q in clip.questions}
        assert len({r["type"] for r in mine}) == min(len(mine), len(kinds))
        assert len(load_video(mine[0]["video"], 4)) == 4


def test_task_descriptions(tmp_path):
    write_lmms_task(tmp_path / 'a "b"', 1, questions=2, num_frames=4)
    root = (tmp_path / 'a "b"').resolve()
    for name, kind in ((TASK, "generate_until"), (CHOICE_TASK, "multiple_choice")):
        task = yaml.safe_load((root / f"{name}.yaml").read_text())
        assert (task["task"], task["output_type"]) == (name, kind)
        data = task["dataset_kwargs"]["data_files"][task["test_split"]]
        assert data == str(root / "questions.jsonl")
        row = json.loads((root / "questions.jsonl").read_text().splitlines()[0])
        fields = [task[f"doc_to_{k}"] for k in ("visual", "text", "target")]
        assert {*fields, task["cluster_key"], task.get("doc_to_choice", "video")} <= row.keys()


def test_same_arguments_same_rows(tmp_path):
    arguments = {"clips": 2, "questions": 3, "seed": 9, "num_frames": 4}
    first = write_lmms_task(tmp_path, **arguments)
    assert write_lmms_task(tmp_path, **arguments) == first


@pytest.mark.parametrize("bad", [{"clips": 0}, {"questions": 0}, {"seed": -1}, {"num_frames": 5}])
def test_bad_arguments(tmp_path, bad):
    with pytest.raises(ConfigError):
        write_lmms_task(tmp_path, **{"clips": 1, **bad})


def test_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VideoError, match="cannot write"):
        write_lmms_task(tmp_path / "file" / "task", 1)


def test_command(tmp_path):
    arguments = ["tiny", "lmms-task", str(tmp_path), "--clips", "2", "--frames", "4"]
    result = CliRunner().invoke(app, [*arguments, "--questions", "1", "--json"])
    assert json.loads(result.stdout) == {
        "path": str(tmp_path),
        "tasks": [TASK, CHOICE_TASK],
        "clips": 2,
        "questions": 2,
    }
    result = CliRunner().invoke(app, arguments)
    assert "2 videos" in result.stdout
    assert TASK in result.stdout
