"""What is handed out (wheel, sdist) is built once; tools come from ``.dist`` (`make test-dist`)."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomlkit

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".dist" / "bin"
PYPROJECT = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8")).unwrap()
# what the sdist has at the top: all that is under version control but results
INCLUDED = {
    *(p.lstrip("/") for p in PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]),
    *("pyproject.toml", "PKG-INFO", ".gitignore"),
}


def run(*command: object, ok: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command; unless ``ok`` is False, it has to succeed."""
    done = subprocess.run(  # type: ignore[call-overload]
        [str(c) for c in command], capture_output=True, text=True, timeout=600, **options
    )
    assert not ok or done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def git_files(*options: str) -> set[str]:
    """Files that git knows, as paths from the root; new ones too with ``--others``."""
    return set(run("git", "ls-files", *options, cwd=ROOT).stdout.splitlines())


@dataclass(frozen=True)
class Artefacts:
    wheel: Path
    sdist: Path


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Artefacts:
    """Build wheel and sdist from this tree, with the build back end that is installed."""
    out = tmp_path_factory.mktemp("artefacts")
    run(sys.executable, "-m", "hatchling", "build", "-d", out, cwd=ROOT)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return Artefacts(wheel, sdist)


def tool(name: str) -> Path:
    """Path of a tool of `make test-dist`; the test is skipped if that was never called."""
    if not TOOLS.exists():
        pytest.skip("the tools are not installed: make test-dist")
    return TOOLS / name
