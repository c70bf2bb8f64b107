"""The wheel in a clean environment, far from the source tree, answers questions.

The environment has the packages that the wheel asks for, and only these: links to what is installed
here, so that nothing is fetched. Test tools and extras are not there.
"""

from __future__ import annotations

import json
import sys
import venv
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

import earlytom
from tests.dist.conftest import ROOT, Artefacts, run

pytestmark = pytest.mark.slow


def needed(requirements: list[Requirement]) -> list[str]:
    """Names of installed packages that ``requirements`` lead to, each once."""
    names: dict[str, None] = {}
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name.lower() not in names:
            names[requirement.name.lower()] = None
            todo += [Requirement(r) for r in distribution(requirement.name).requires or []]
    return list(names)


def link(names: list[str], folder: Path) -> None:
    """Link the files of installed packages into ``folder``, a site-packages."""
    for name in names:
        package = distribution(name)
        tops = {file.parts[0] for file in package.files or []} - {"..", "__pycache__"}
        for top in tops:
            if not (folder / top).exists():  # two packages may share a namespace
                (folder / top).symlink_to(Path(str(package.locate_file(top))))


class Clean:
    """A fresh virtual environment and an empty folder to be in."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        venv.create(folder / "venv", with_pip=False)
        self.bin = folder / "venv" / "bin"
        self.environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.home), "OMP_NUM_THREADS": "1"}
        self.packages = Path(self("python", "-c", "import site; print(site.getsitepackages()[0])"))

    def __call__(self, command: str, *args: object) -> str:
        done = run(self.bin / command, *args, cwd=self.home, env=self.environment)
        return done.stdout.strip()


@pytest.fixture(scope="module")
def clean(artefacts: Artefacts, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    clean = Clean(tmp_path_factory.mktemp("clean"))
    with ZipFile(artefacts.wheel) as wheel:
        (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
        wanted = Metadata.from_email(wheel.read(name)).requires_dist or []
    link(needed(wanted), clean.packages)
    pip = (sys.executable, "-m", "pip", "--python", clean.bin / "python", "install", "-q")
    # without an index pip fails if a package that the wheel asks for is missing or too old
    run(*pip, "--no-index", "--disable-pip-version-check", artefacts.wheel, cwd=clean.home)
    return clean


def test_environment_is_clean(clean):
    code = "import importlib.util as u, sys, earlytom; print(earlytom.__file__);"
    code += "print(*(n for n in ('pytest', 'matplotlib', 'peft', 'PIL') if u.find_spec(n)));"
    code += "print(*sys.path, sep='\\n')"
    file, extras, *path = clean("python", "-c", code).split("\n")
    assert Path(file).is_relative_to(clean.packages)
    assert extras == ""
    assert not [p for p in path if p and Path(p).is_relative_to(ROOT)]


def test_command_and_module(clean):
    assert clean("earlytom", "--version") == f"earlytom {earlytom.__version__}"
    assert clean("python", "-m", "earlytom", "--version") == f"earlytom {earlytom.__version__}"
    methods = json.loads(clean("earlytom", "methods", "--json"))
    assert {"afterimage", "earlytom", "holitom"} <= {m["name"] for m in methods}


def test_demo_answers(clean):
    data = json.loads(clean("earlytom", "demo", "--clips", 2, "--questions", 4, "--json"))
    assert data["questions"] == 8
    assert data["accuracy_full"] >= 0.75
    assert data["accuracy_compressed"] >= 0.75
    assert data["tokens_compressed"] == data["tokens_full"] // 4
    assert list(clean.home.glob("[!.]*")) == []  # nothing is left behind


def test_plugin_of_lmms_eval_is_found(clean):
    code = "from importlib.metadata import entry_points as e;"
    code += "(p,) = e(group='lmms_eval.models', name='earlytom'); print(p.value)"
    assert clean("python", "-c", code) == "earlytom.integrations.lmms_eval:manifest"
