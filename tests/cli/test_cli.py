import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

import earlytom
from earlytom.cli import app

QUESTION = "what colour is the circle"
TIMES = ("decode", "preprocess", "vision", "tokens", "prefill", "ttft", "total")


def run(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def test_version_and_help():
    assert run("--version").output == f"earlytom {earlytom.__version__}\n"
    for command in ("--help", "ask --help", "demo --help", "methods --help"):
        result = run(*command.split())
        assert result.exit_code == 0
        assert "Usage" in result.output


def test_methods():
    result = run("methods", "--json")
    found = {m["name"]: m for m in json.loads(result.stdout)}
    assert found["earlytom"]["settings"]["retention_ratio"] == 0.25
    assert found["earlytom"]["summary"]
    text = run("methods").output
    assert "earlytom" in text
    assert "retention_ratio=0.25" in text


def test_ask(clip, folder):
    result = run("ask", clip, QUESTION, "--model", folder, "--frames", 16, "--max-new-tokens", 4)
    assert result.exit_code == 0, result.output
    for text in ("decode video", "preprocess", "vision encoding", "token processing", "LLM prefill",
                 "time to first token", "new tokens", "64 -> 16"):  # fmt: skip
        assert text in result.stdout


def test_ask_json(clip, folder):
    args = ("ask", clip, QUESTION, "--model", folder, "--max-new-tokens", 4, "--json")
    data = json.loads(run(*args, "--frames", 8, "--retention-ratio", 0.5).stdout)
    assert data["question"] == QUESTION
    assert (data["frames_in"], data["tokens_in"], data["tokens_out"]) == (8, 32, 16)
    assert data["new_tokens"] == 4
    assert all(data["timings"][t] > 0 for t in TIMES)
    assert data["method"]["retention_ratio"] == 0.5
    plain = json.loads(run(*args, "--fps", 2, "--method", "none").stdout)
    assert plain["method"] is None
    assert plain["tokens_in"] == plain["tokens_out"] == 4 * plain["frames_in"]
    other = json.loads(
        run(*args, "--positions", "keep", "--method", "earlytom", "--policy", "paper").stdout
    )
    assert (other["method"]["positions"], other["method"]["policy"]) == ("keep", "paper")


def test_ask_compare(clip, folder):
    args = ("ask", clip, QUESTION, "--model", folder, "--max-new-tokens", 2, "--compare")
    data = json.loads(run(*args, "--json").stdout)
    assert data["full"]["tokens_out"] == data["full"]["tokens_in"]
    assert data["compressed"]["tokens_out"] < data["full"]["tokens_out"]
    assert data["ttft_speedup"] > 0
    text = run(*args).stdout
    for word in ("full:", "afterimage:", "change", "25.0%"):
        assert word in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("none.mp4", "x"), "no such video file: none.mp4"),
        (("{clip}", "x", "--model", "./none"), "no such model folder: ./none"),
        (("{clip}", "x", "--method", "magic"), "unknown method 'magic'"),
        (("{clip}", "x", "--retention-ratio", "7"), "retention_ratio must be a number in (0, 1]"),
        (("{clip}", "x", "--frames", "0"), "frames must be an integer >= 1"),
        (("{clip}", "x", "--fps", "-1"), "fps must be a finite number > 0"),
        (("{clip}", "x", "--fps", "nan"), "fps must be a finite number > 0"),
        (("{clip}", "x", "--frames", "3", "--fps", "1"), "either frames or fps"),
        (("{clip}", "x", "--model", "{folder}", "--device", "tpu9"), "unknown device"),
        (("{clip}", "<video>", "--model", "{folder}"), "must not contain the placeholder"),
        (("https://h/v.mp4", "x"), "not a local file"),
    ],
)
def test_errors_are_one_line(clip, folder, args, message):
    args = [a.format(clip=clip, folder=folder) for a in args]
    result = run("ask", *args)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout.strip() == ""
    result = run("ask", *args, "--json")
    assert result.exit_code == 1
    assert message in json.loads(result.stdout)["error"]


@pytest.mark.parametrize(
    "args", [("ask",), ("ask", "v", "q", "--frames", "x"), ("bogus",), ("demo", "--clips", "0")]
)
def test_usage_errors(args):
    assert run(*args).exit_code == 2


def test_interrupt(monkeypatch, clip):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("earlytom.cli._options.make_method", stop)
    result = run("ask", clip, "x")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_demo(folder):
    args = ("demo", "--model", folder, "--clips", 2, "--questions", 3, "--frames", 8)
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["clips"] == 2
    assert data["questions"] == len(data["answers"]) == 6
    assert 0 <= data["accuracy_full"] <= 1
    assert 0 <= data["accuracy_compressed"] <= 1
    assert (data["frames"], data["tokens_full"], data["tokens_compressed"]) == (8, 32, 8)
    assert data["frames_after_encoder"] == 8  # the default drops patches, no frames
    assert data["patches_encoded"] < 0.6 * data["patches"]
    assert data["timings"]["full"]["ttft"] > 0
    assert data["decode"] > 0
    assert sum(t["questions"] for t in data["by_type"].values()) == 6
    text = run(*args).stdout
    for word in ("expected", "right answers", "visual tokens", "the first token comes"):
        assert word in text


def test_demo_counts_right_answers(monkeypatch, folder):
    from earlytom.pipeline import VideoQA

    ask = VideoQA.ask

    def oracle(self, video, question, method=None, **kwargs):
        import dataclasses

        answer = ask(self, video, question, method, **kwargs)
        return dataclasses.replace(answer, text="yes" if method is None else "no")

    def one(path, seed, *, num_frames):
        from earlytom.tiny import write_video

        listing = write_video(path, seed, num_frames=num_frames)
        data = json.loads(listing.read_text())
        data["questions"] = [{"type": "t", "question": "what", "answer": "Yes."}] * 3
        listing.write_text(json.dumps(data))
        return listing

    monkeypatch.setattr(VideoQA, "ask", oracle)
    monkeypatch.setattr("earlytom.cli._demo_run.write_video", one)
    args = ("demo", "--model", folder, "--clips", 1, "--questions", 2, "--frames", 4, "--json")
    data = json.loads(run(*args).stdout)
    assert (data["questions"], data["accuracy_full"], data["accuracy_compressed"]) == (2, 1, 0)
    assert data["same_answer"] == 0


def child(*args, **variables):
    return subprocess.Popen(
        [sys.executable, "-m", "earlytom.cli", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **variables},
        # a shell that starts the tests in the background makes all of them ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_process(clip):
    out, err = child("ask", clip, "x", "--model", "./none", "--json").communicate(timeout=60)
    assert json.loads(out) == {"error": "no such model folder: ./none"}
    assert err.strip() == "error: no such model folder: ./none"


def test_cli_starts_without_torch():
    code = "import sys, earlytom.cli; print('torch' in sys.modules, 'av' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert out.stdout.split() == ["False", "False"]


def test_ctrl_c_ends_a_running_command(folder, tmp_path):
    process = child("demo", "--model", folder, "--clips", 500, "--json", TMPDIR=str(tmp_path))
    patience = time.monotonic() + 120
    while not list(tmp_path.glob("earlytom-demo-*/*.mp4")) and time.monotonic() < patience:
        time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out == ""
    assert not list(tmp_path.glob("earlytom-demo-*"))
