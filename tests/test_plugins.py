"""Methods of other packages: decorator, entry points, broken plugins."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest

import earlytom
from earlytom import registry
from earlytom.errors import ConfigError
from earlytom.method import Method, list_methods, load_method, register_method

PYPROJECT = """
[build-system]
requires = []
build-backend = "{backend}"

[project]
name = "dummy-methods"
version = "1.0"

[project.entry-points."earlytom.methods"]
every-other = "dummy_methods.every:EveryOther"
by-decorator = "dummy_methods.decorated"
missing-module = "dummy_methods.nothing:Method"
raises = "dummy_methods.raises"
leaves = "dummy_methods.leaves"
no-method = "dummy_methods.every:NotAMethod"
silent = "dummy_methods.every:VALUE"
evs = "dummy_methods.every:NotEVS"
"""
EVERY = '''
"""Methods, as a third party would write them."""
import sys
from dataclasses import dataclass
import torch
from earlytom.method import Method
from earlytom.stages import TokenSelection, VideoFeatures

VALUE = 3


class NotAMethod:
    pass


@dataclass(frozen=True, kw_only=True)
class EveryOther(Method):
    """Every second token."""

    name = "every-other"
    step: int = 2

    def select_tokens(self, video):
        n, size = video.features.shape[:2]
        return TokenSelection(torch.arange(0, n * size, self.step))


@dataclass(frozen=True, kw_only=True)
class NotEVS(EveryOther):
    name = "evs"
'''
DECORATED = '''
"""Registers by decorator when imported."""
from dataclasses import dataclass
import earlytom
from dummy_methods.every import EveryOther


@earlytom.register_method
@dataclass(frozen=True, kw_only=True)
class ByDecorator(EveryOther):
    """The same, registered by decorator."""

    name = "by-decorator"
'''
FILES = {
    "pyproject.toml": PYPROJECT,
    "dummy_methods/__init__.py": "",
    "dummy_methods/every.py": EVERY,
    "dummy_methods/decorated.py": DECORATED,
    "dummy_methods/raises.py": "raise RuntimeError('broken on purpose\\nsecond line')\n",
    "dummy_methods/leaves.py": "import sys\nsys.exit(3)\n",
}
BROKEN = {
    "missing-module": "ModuleNotFoundError: No module named 'dummy_methods.nothing'",
    "raises": "RuntimeError: broken on purpose",
    "leaves": "SystemExit: 3",
    "no-method": "ConfigError: dummy_methods.every.NotAMethod is not a subclass of earlytom.Method",
    "silent": "ConfigError: dummy_methods.every:VALUE registers no method of that name",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dummy package, really installed."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    # what is installed here builds it: nothing is downloaded
    known = find_spec("hatchling") is not None
    backend = "hatchling.build" if known else "setuptools.build_meta"
    for name, text in FILES.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text.replace("{backend}", backend))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([*pip, *flags, str(source)], check=True, capture_output=True)
    return target


def python(site: Path, *command: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *(p for p in sys.path if p)])
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=env, timeout=300
    )


def code(site: Path, text: str) -> str:
    run = python(site, "-c", text)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_both_ways_are_listed_and_usable(site: Path) -> None:
    run = python(site, "-m", "earlytom.cli", "methods", "--json")
    assert run.returncode == 0, run.stderr
    found = {m["name"]: m for m in json.loads(run.stdout)}
    assert found["every-other"]["settings"]["step"] == 2
    assert found["every-other"]["summary"] == "Every second token."
    assert {"by-decorator", "earlytom", "evs"} <= set(found)
    assert not set(BROKEN) & set(found)
    text = """
import earlytom, torch
from earlytom.stages import VideoFeatures, VideoState
for name in ("every-other", "by-decorator"):
    m = earlytom.load_method(name, step=3)
    assert earlytom.Method.from_json(m.to_json()) == m
    chosen = m.select_tokens(VideoFeatures(torch.zeros(2, 4, 3), None, (2, 2), VideoState.start(2)))
    print(type(m).__name__, chosen.index.tolist())
"""
    assert code(site, text) == "EveryOther [0, 3, 6]\nByDecorator [0, 3, 6]"


def test_nothing_is_imported_before_it_is_needed(site: Path) -> None:
    text = """
import sys, earlytom
earlytom.load_method("earlytom")
assert not [m for m in sys.modules if m.startswith("dummy_methods")]
earlytom.load_method("every-other")
print(sorted(m for m in sys.modules if m.startswith("dummy_methods.")))
"""
    assert code(site, text) == "['dummy_methods.every']"


def test_broken_plugins_do_not_break_others(site: Path) -> None:
    """One warning each, an error that names the package on use, and their names stay free."""
    text = f"""
import earlytom
names = earlytom.list_methods()
assert names == earlytom.list_methods()
print(names)
for name in {sorted(BROKEN)}:
    try:
        earlytom.load_method(name)
    except earlytom.ConfigError as e:
        print(e)
print(type(earlytom.load_method("evs")).__module__)
"""
    run = python(site, "-c", text)
    assert run.returncode == 0, run.stderr
    listed, *errors, module = run.stdout.splitlines()
    assert "'every-other'" in listed
    for (name, reason), error in zip(sorted(BROKEN.items()), errors, strict=True):
        assert error == f"method '{name}' of package 'dummy-methods' cannot be loaded ({reason})"
        assert run.stderr.count(error) == 1
    assert "Traceback" not in run.stderr
    assert module == "earlytom.methods.evs"
    assert "method name 'evs' is taken by earlytom.methods.evs.EVS" in run.stderr


def test_names_of_this_package_cannot_be_taken(tmp_path: Path) -> None:
    """Not even before the methods of this package are imported."""
    text = """
from dataclasses import dataclass
from earlytom.method import Method, register_method
@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    name = "evs"
try:
    register_method(Mine)
except Exception as e:
    print(type(e).__name__, e)
print(type(Method.from_json('{"method": "evs"}')).__module__)
"""
    taken = "ConfigError method name 'evs' is taken by earlytom.methods.evs.EVS"
    assert code(tmp_path, text) == f"{taken}\nearlytom.methods.evs"


def test_decorator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    class Mine(Method):
        name: ClassVar[str] = "mine"

    assert earlytom.register_method(Mine) is Mine
    assert register_method(Mine) is Mine, "registering again changes nothing"
    assert "mine" in list_methods()
    assert load_method("mine") == Mine()
    first = Mine

    def other() -> type[Method]:
        class Mine(Method):
            name: ClassVar[str] = "mine"

        return Mine

    with pytest.raises(ConfigError, match="method name 'mine' is taken by"):
        register_method(other())
    assert type(load_method("mine")) is first
    with pytest.raises(ConfigError, match="needs a class attribute `name`"):
        register_method(type("Nameless", (Method,), {}))
    with pytest.raises(ConfigError, match=r"unknown method 'magic'; available: .*earlytom"):
        load_method("magic")
