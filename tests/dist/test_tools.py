"""Tools that others will run over this tree find nothing, and would find something."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.dist.conftest import INCLUDED, ROOT, TOOLS, git_files, run, tool

pytestmark = pytest.mark.slow
CITATION = "vendor.citation-file-format"
FORMS = ".github/ISSUE_TEMPLATE"
WORKFLOW = ".github/workflows/ci.yml"


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        (CITATION, ["CITATION.cff"]),
        ("vendor.github-issue-forms", [f"{FORMS}/bug.yml", f"{FORMS}/new-method.yml"]),
        ("vendor.github-issue-config", [f"{FORMS}/config.yml"]),
        ("vendor.github-workflows", [WORKFLOW]),
        ("custom.github-workflows-require-timeout", [WORKFLOW]),
    ],
)
def test_schemas(schema, files):
    assert {Path(f).name for f in files} <= {p.name for p in (ROOT / files[0]).parent.iterdir()}
    run(tool("check-jsonschema"), "--builtin-schema", schema, *files, cwd=ROOT)


def test_a_broken_citation_is_found(tmp_path):
    broken = tmp_path / "CITATION.cff"
    broken.write_text((ROOT / "CITATION.cff").read_text().replace("type: software", "type: toy"))
    check = (tool("check-jsonschema"), "--builtin-schema", CITATION, broken)
    assert "toy" in run(*check, ok=False).stdout


def test_dockerfiles():
    files = sorted((ROOT / "docker").glob("*.Dockerfile"))
    assert len(files) >= 2
    run(tool("hadolint"), "--failure-threshold", "info", *files)


def test_a_careless_dockerfile_is_found(tmp_path):
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM python:latest\nRUN cd /tmp && pip install torch\n")
    done = run(tool("hadolint"), careless, ok=False)
    assert done.returncode == 1
    assert {"DL3007", "DL3013"} <= set(done.stdout.split())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is under version control, as a repository of its own."""
    folder = tmp_path_factory.mktemp("tree")
    for name in git_files("--cached", "--others", "--exclude-standard"):
        if name.split("/")[0] in INCLUDED and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    run("git", "init", "-q", cwd=folder)
    return folder


def hooks(tree: Path, *, ok: bool) -> str:
    """Run all hooks but mypy, which `make lint` runs, over all files; return what they print."""
    skip = {"PRE_COMMIT_HOME": str(TOOLS.parent / "pre-commit"), "SKIP": "mypy"}
    run("git", "add", "-A", cwd=tree)
    pre_commit = (tool("pre-commit"), "run", "--all-files", "--color=never")
    return run(*pre_commit, ok=ok, cwd=tree, env={**os.environ, **skip}).stdout


def test_hooks_find_nothing_here(tree):
    printed = hooks(tree, ok=True)
    for name in ("ruff check", "ruff format", "trailing whitespace", "YAML", "TOML"):
        assert f"{name}." in printed


def test_hooks_find_and_mend(tree):
    tool("pre-commit")
    bad = tree / "src" / "earlytom" / "bad.py"
    bad.write_text('import sys\nimport os\n"""Late."""  \nx = os.sep+sys.path[0]')
    (tree / "bad.yml").write_text("a: [\n")
    printed = hooks(tree, ok=False)
    failed = [line.split(".")[0] for line in printed.splitlines() if line.endswith("Failed")]
    assert {"ruff check", "ruff format", "YAML"} <= set(failed)
    assert bad.read_text() == 'import os\nimport sys\n\n"""Late."""\nx = os.sep + sys.path[0]\n'
