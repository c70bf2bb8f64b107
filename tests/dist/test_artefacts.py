"""Wheel and sdist are complete, small, described rightly, and the same thing twice."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest

import earlytom
from tests.dist.conftest import INCLUDED, ROOT, Artefacts, git_files, run, tool

pytestmark = pytest.mark.slow
LIMIT = 25 * 2**20
INFO = f"earlytom-{earlytom.__version__}.dist-info"
# what a checkout has and an sdist has not: measured results, and what git itself needs
LEFT_OUT = {"results", ".gitignore"}


@pytest.fixture(scope="module")
def files(artefacts: Artefacts) -> dict[str, bytes]:
    with zipfile.ZipFile(artefacts.wheel) as wheel:
        assert wheel.testzip() is None
        return {name: wheel.read(name) for name in wheel.namelist()}


@pytest.fixture(scope="module")
def metadata(files: dict[str, bytes]) -> Message:
    return Parser().parsestr(files[f"{INFO}/METADATA"].decode())


def sources(folder: Path) -> set[str]:
    paths = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder.parent).as_posix() for p in paths}


def test_wheel_has_the_package_and_nothing_else(files):
    assert {f for f in files if not f.startswith(INFO)} == sources(ROOT / "src" / "earlytom")
    for needed in (
        "py.typed",
        "tiny/weights/model.safetensors",
        "tiny/weights/tokenizer.json",
        "inspect/page.html.j2",
        "bench/report/leaderboard.html.j2",
    ):
        assert f"earlytom/{needed}" in files


def test_shipped_model_is_the_one_of_the_tree(files):
    name = "tiny/weights/model.safetensors"
    there = hashlib.sha256(files[f"earlytom/{name}"]).hexdigest()
    assert there == hashlib.sha256((ROOT / "src/earlytom" / name).read_bytes()).hexdigest()


def test_small_enough(artefacts):
    assert artefacts.wheel.stat().st_size <= LIMIT
    assert artefacts.sdist.stat().st_size <= LIMIT


def test_metadata(metadata, files):
    assert metadata["Name"] == "earlytom"
    assert metadata["Version"] == earlytom.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Author"] == "earlytom contributors"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).startswith("# earlytom")
    assert files[f"{INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_entry_points(files):
    lines = files[f"{INFO}/entry_points.txt"].decode().splitlines()
    assert "earlytom = earlytom.cli:main" in lines[lines.index("[console_scripts]") :]
    assert "[lmms_eval.models]" in lines


def test_sdist_has_what_git_has(artefacts):
    with tarfile.open(artefacts.sdist) as archive:
        names = [PurePosixPath(m.name) for m in archive.getmembers() if m.isfile()]
    assert {n.parts[0] for n in names} == {f"earlytom-{earlytom.__version__}"}
    found = {PurePosixPath(*n.parts[1:]).as_posix() for n in names}
    assert {f.split("/")[0] for f in found} <= INCLUDED
    if run("git", "rev-parse", cwd=ROOT, ok=False).returncode != 0:
        pytest.skip("not a checkout")
    committed = {f for f in git_files() if (ROOT / f).is_file()}
    assert {f for f in committed if f.split("/")[0] not in LEFT_OUT} <= found
    assert found - {"PKG-INFO"} <= committed | git_files("--others", "--exclude-standard")


def test_sdist_builds_the_same_wheel(artefacts, tmp_path):
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q")
    run(*pip, "--no-deps", "--no-build-isolation", "-w", tmp_path, artefacts.sdist, cwd=tmp_path)
    (again,) = tmp_path.glob("*.whl")
    assert again.name == artefacts.wheel.name
    assert again.read_bytes() == artefacts.wheel.read_bytes()


def test_index_would_take_them(artefacts):
    run(tool("twine"), "check", "--strict", artefacts.wheel, artefacts.sdist)


def test_images_get_all_that_a_build_needs(artefacts, tmp_path):
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for name in (r[1:] for r in rules if r.startswith("!")):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out", cwd=tmp_path)
    (again,) = (tmp_path / "out").glob("*.whl")
    assert again.read_bytes() == artefacts.wheel.read_bytes()
