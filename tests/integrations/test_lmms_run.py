"""Real lmms-eval, end to end: the full model against EarlyTom (`make test-lmms`)."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from earlytom.tiny import weights_path, write_lmms_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed"),
]
QUESTIONS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lmms")
    assert len(write_lmms_task(folder / "task", 10, questions=6, seed=0)) == QUESTIONS
    return folder


def evaluate(folder, name, model_args, tasks):
    """Run lmms-eval in a process of its own; return its results file and its samples per task."""
    out = folder / name
    command = [sys.executable, "-m", "lmms_eval", "--model", "earlytom", "--model_args", model_args]
    command += ["--tasks", ",".join(tasks), "--include_path", str(folder / "task")]
    command += ["--device", "cpu", "--output_path", str(out), "--log_samples"]
    settings = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, **settings, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    found = list(out.rglob("*results.json"))  # lmms-eval ends with 0 after errors, too
    assert len(found) == 1, done.stdout[-4000:] + done.stderr[-4000:]
    samples = {
        task: [json.loads(line) for line in file.read_text().splitlines()]
        for task in tasks
        for file in out.rglob(f"*_samples_{task}.jsonl")
    }
    return json.loads(found[0].read_text()), samples


def test_full_against_compressed(folder):
    model = f"pretrained={weights_path()},frames=16"
    full, _ = evaluate(folder, "full", f"{model},method=none", ["earlytom_tiny"])
    tasks = ["earlytom_tiny", "earlytom_tiny_choice"]
    arguments = f"{model},method=earlytom,retention_ratio=0.25,merge_layers=[1,4]"
    less, samples = evaluate(folder, "less", arguments, tasks)
    before = full["results"]["earlytom_tiny"]["exact_match,none"]
    after = less["results"]["earlytom_tiny"]["exact_match,none"]
    choice = less["results"]["earlytom_tiny_choice"]["acc,none"]
    assert before >= 0.95
    assert 0.8 <= after <= before  # the price of three quarters of the tokens, and not more
    assert abs(choice - after) <= 0.1
    assert full["throughput"]["avg_retention"] == 1
    assert less["throughput"]["avg_retention"] == 0.25
    assert less["throughput"]["avg_tokens_out_per_video"] == 196
    assert less["throughput"]["avg_frames_out_per_video"] < 16
    rows = samples["earlytom_tiny"]
    assert len(rows) == len(samples["earlytom_tiny_choice"]) == QUESTIONS
    assert all(196 < r["token_counts"][0]["input_tokens"] < 230 for r in rows)
    assert after == pytest.approx(sum(r["exact_match"] for r in rows) / QUESTIONS)


def test_unknown_option_ends_the_run(folder):
    with pytest.raises(AssertionError, match="unknown option 'retention'"):
        evaluate(folder, "bad", "retention=0.1", ["earlytom_tiny"])
