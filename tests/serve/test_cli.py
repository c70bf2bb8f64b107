"""``earlytom serve`` from the ready line to the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import earlytom.serve
from earlytom.cli import app
from tests.serve.fake import launch


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command with the small server in that mode."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(earlytom.serve, "check_vllm", lambda: None)

    def run(mode: str, *options: str) -> Any:
        started = launch(mode)
        monkeypatch.setattr(earlytom.serve, "prepare", lambda *_, **__: started)
        arguments = ["serve", "--port", "0", "--log-file", "log", *options]
        return started, CliRunner().invoke(app, arguments)

    return run


def test_an_interrupt_reaches_the_server_and_its_exit_code_is_returned(run: Any) -> None:
    started, result = run("interrupts", "--json")
    assert result.exit_code == 5
    ready = json.loads(result.stdout)
    assert ready.pop("pid") > 0
    assert ready == {
        "url": started.url,
        "model": "fake",
        "method": "none",
        "retention_ratio": 1,
    }
    assert "error" not in result.stderr


def test_examples_are_printed(run: Any) -> None:
    started, result = run("interrupts")
    assert f"{started.url} serves fake" in result.stdout
    assert "curl -s" in result.stdout
    assert "urllib.request" in result.stdout


def test_a_server_that_ends_by_itself_is_an_error(run: Any) -> None:
    _, result = run("ends")
    assert result.exit_code == 1
    assert "error: vLLM ended by itself; its reason is in log" in result.stderr


def test_a_server_that_does_not_start(run: Any) -> None:
    _, result = run("broken", "--json")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "error: vLLM ended before it was ready" in result.stderr
    assert "no memory" in Path("log").read_text()


def test_a_log_that_cannot_be_written(run: Any) -> None:
    _, result = run("fine", "--log-file", "no/such/folder/log")
    assert result.exit_code == 1
    assert "error: cannot write no/such/folder/log" in result.stderr
