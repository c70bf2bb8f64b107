import os
import re
import sys

import pytest
from typer.testing import CliRunner

from earlytom.app.server import FOLDER_VARIABLE, upload_folder
from earlytom.cli import app


def run(*args):
    return CliRunner().invoke(app, ["app", *map(str, args)])


def test_folder_of_uploads(monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, "/before")
    with upload_folder() as folder:
        assert os.environ[FOLDER_VARIABLE] == str(folder)
        assert oct(folder.stat().st_mode)[-3:] == "700"
        (folder / "a").mkdir()
        (folder / "a" / "b.mp4").touch()
    assert not folder.exists()
    assert os.environ[FOLDER_VARIABLE] == "/before"


def test_without_gradio(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = run("--port", 0)
    assert result.exit_code == 1
    assert result.stderr == "error: the page needs Gradio: pip install 'earlytom[demo]'\n"
    assert "demo" in run("--help").output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--port", 70000), "error: port must be in 0..65535, got 70000"),
        (("--host", "256.1.1.1"), "error: cannot listen on 256.1.1.1 port 7860"),
        (("--port", 0, "--model", "./none"), "error: no such model folder: ./none"),
        (("--port", 0, "--device", "abacus"), "error: unknown device 'abacus'"),
        (("--port", 0, "--frames", 0), "error: frames must be an integer >= 1, got 0"),
    ],
)
def test_bad_options(args, message, monkeypatch):
    monkeypatch.setattr("earlytom.app.server.check_extra", lambda: None)
    result = run(*args)
    assert result.exit_code == 1
    assert result.stderr.startswith(message)
    assert re.fullmatch(r"[^\n]*\n", result.stderr)
