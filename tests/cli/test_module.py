"""The command line as a module: ``python -m earlytom`` and ``python -m earlytom.cli``."""

import importlib
import subprocess
import sys

import pytest

import earlytom


@pytest.mark.parametrize("module", ["earlytom", "earlytom.cli"])
def test_runs_the_command_line(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"earlytom {earlytom.__version__}\n"), done.stderr


@pytest.mark.parametrize("module", ["earlytom.__main__", "earlytom.cli.__main__"])
def test_importing_runs_nothing(module, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["earlytom", "--version"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.import_module(module)  # would raise SystemExit
