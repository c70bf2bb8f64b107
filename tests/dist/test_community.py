"""Citation, forms, hooks, workflow and images say what is true of this package."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

import earlytom
from earlytom.catalog import catalog
from earlytom.cli import app
from tests.dist.conftest import PYPROJECT, ROOT, run

PAGES = ["CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "SECURITY.md", ".github/PULL_REQUEST_TEMPLATE.md"]
IMAGES = ["docker/cpu.Dockerfile", "docker/cuda.Dockerfile"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def read(name: str) -> Any:
    return yaml.safe_load(text(name))


def pins(*names: str) -> dict[str, str]:
    lines = (line for name in names for line in text(f"requirements/{name}.txt").splitlines())
    found = (line.split(";")[0].strip().split("==") for line in lines if "==" in line)
    return {name.replace("_", "-").lower(): version for name, version in found}


def question(form: str, key: str) -> dict[str, Any]:
    (found,) = (f for f in read(f".github/ISSUE_TEMPLATE/{form}.yml")["body"] if f.get("id") == key)
    return found["attributes"]


def test_citation_agrees_with_the_package():
    data, project = read("CITATION.cff"), PYPROJECT["project"]
    assert data["version"] == earlytom.__version__
    assert data["license"] == project["license"]
    assert sorted(data["keywords"]) == sorted(project["keywords"])
    assert [a["name"] for a in data["authors"]] == [a["name"] for a in project["authors"]]
    (paper,) = data["references"]
    method = earlytom.EarlyTom
    first = paper["authors"][0]["family-names"]
    number = paper["identifiers"][0]["value"].removeprefix("arXiv:")
    assert method.citation == f"{first} et al., {paper['conference']['name']}, arXiv {number}"
    assert paper["repository-code"] == method.url
    assert paper["url"].endswith(number)


def test_all_extras():
    extras = PYPROJECT["project"]["optional-dependencies"]
    (everything,) = (Requirement(r) for r in extras["all"])
    assert everything.name == "earlytom"
    assert everything.extras == set(extras) - {"all", "lmms-eval", "test", "vllm"}


def test_hooks_have_the_versions_of_make():
    hooks = {h["id"]: h for r in read(".pre-commit-config.yaml")["repos"] for h in r["hooks"]}
    wanted = pins("test", "dist")
    used = {d for h in hooks.values() for d in h.get("additional_dependencies", [])}
    assert {Requirement(d).name for d in used} == {"ruff", "pre-commit-hooks"}
    assert used == {f"{name}=={wanted[name]}" for name in ("ruff", "pre-commit-hooks")}
    assert hooks["mypy"]["entry"].startswith(".venv/bin/python -m mypy")  # whatever is installed


def test_form_for_methods_asks_for_places_that_exist():
    places = {a.removesuffix(" (optional)") for m in catalog() for a in m.acts}
    assert set(question("new-method", "acts")["options"]) == places - {"as its stages"}


def test_command_of_the_bug_form_runs():
    (command,) = re.findall("`(python -c .*?)`", question("bug", "versions")["description"])
    python, *arguments = shlex.split(command)
    assert python == "python"
    assert earlytom.__version__ in run(sys.executable, *arguments).stdout.split()


@pytest.mark.parametrize("page", PAGES)
def test_pages_speak_of_what_is_there(page):
    links = re.findall(r"\]\(([^)#]+)", text(page))
    assert all((ROOT / page).parent.joinpath(x).exists() for x in links if "://" not in x), links
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", text(page))) <= targets | {"and"}
    for module in re.findall(r"python -m (tests[.\w]+\w)", text(page)):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module
    for path in re.findall(r"`((?:src|tests|docker)/[\w/.]+)`", text(page)):
        assert (ROOT / path).exists(), path


def test_workflow_runs_what_everybody_runs():
    steps = [s for job in read(".github/workflows/ci.yml")["jobs"].values() for s in job["steps"]]
    commands = [s["run"] for s in steps if "run" in s]
    assert ".ci/run" in commands
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    built = [f for c in commands for f in re.findall(r"docker build -f (\S+)", c)]
    assert set(built) <= set(IMAGES)
    assert built


def instructions(image: str) -> list[list[str]]:
    """Words of every instruction, comments and continued lines resolved."""
    lines = [line for line in text(image).splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [line.split() for line in joined.splitlines() if line.strip()]


def passes_dockerignore(path: str) -> bool:
    rules = [r for r in text(".dockerignore").splitlines() if r and not r.startswith("#")]
    assert rules[0] == "*"
    return f"!{Path(path).parts[0]}" in rules


def stages(image: str) -> dict[str, list[list[str]]]:
    """Instructions of every stage by name; the one that is built by default has none."""
    found: dict[str, list[list[str]]] = {}
    for words in instructions(image):
        if words[0] == "FROM":
            found[words[3] if words[2:3] == ["AS"] else ""] = []
        found[list(found)[-1]].append(words)
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_image(image):
    build, with_app, runtime, page, default = stages(image).values()
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", build[0][1])
    assert runtime[0][1] == build[0][1]  # a virtual environment moves to the same Python only
    (user,) = (s[1] for s in runtime if s[0] == "USER")
    assert int(user) > 0
    assert ["ENTRYPOINT", '["earlytom"]'] in runtime
    copied = [p for s in build if s[0] == "COPY" for p in s[1:-1]]
    assert {"requirements", "pyproject.toml", "README.md", "LICENSE", "src"} == set(copied)
    assert all(passes_dockerignore(p) and (ROOT / p).exists() for p in copied)
    for last, source in ((page, "build-app"), (default, "build")):
        assert last[0][1] == "runtime"
        assert last[1][:2] == ["COPY", f"--from={source}"]
        assert last[-1][0] == "HEALTHCHECK"
    assert page[-1][1] != "NONE"
    assert with_app[0][1] == "build"


@pytest.mark.parametrize("image", IMAGES)
def test_what_images_ask_for_exists(image):
    for name in ("app", ""):
        (command,) = (" ".join(s[1:]) for s in stages(image)[name] if s[0] == "CMD")
        result = CliRunner().invoke(app, [*json.loads(command)[:1], "--help"])
        assert result.exit_code == 0, result.output
        for option in json.loads(command)[1::2]:
            assert option in result.output
    for file in re.findall(r"requirements/\w+\.txt", text(image)):
        assert (ROOT / file).exists(), file
    extras = PYPROJECT["project"]["optional-dependencies"]
    installed = re.findall(r"'\.\[(\w+)\]'", text(image))
    assert set(installed) == {"demo", "report"}
    assert set(installed) <= set(extras)
    wanted = {"report": pins("base", "test"), "demo": pins("base", "app")}
    for extra in installed:
        names = {Requirement(r).name.lower() for r in extras[extra]}
        assert names <= set(wanted[extra]), extra


def test_both_images_have_the_same_python():
    first, second = (stages(image)["build"][0] for image in IMAGES)
    assert first == second


def test_an_image_without_cuda_finds_the_pin_of_torch():
    assert "grep '^torch==' requirements/base.txt" in text(IMAGES[0])
    assert len(re.findall("^torch==", text("requirements/base.txt"), re.MULTILINE)) == 1
