"""Every public name has a docstring and a place in ``docs/reference``.

Public is what a module exports by ``__all__``. The build of the site checks the same from the
sources (``docs/hooks.py``), docstrings of constants included.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import earlytom
from tests.docs.blocks import ROOT

PAGES = ROOT / "docs" / "reference"
DIRECTIVE = re.compile(r"^::: (\S+)\n((?: +.*\n)*)", re.MULTILINE)


def public_modules() -> list[str]:
    """Modules with ``__all__``, found in their source: some need optional packages."""
    found = ["earlytom"]
    for module in pkgutil.walk_packages(earlytom.__path__, "earlytom.", onerror=lambda _: None):
        if re.search(r"\._|\.cli\b", module.name):
            continue
        spec = importlib.util.find_spec(module.name)
        assert spec is not None
        text = Path(str(spec.origin)).read_text(encoding="utf-8")
        if re.search(r"^__all__ =", text, re.MULTILINE):
            found.append(module.name)
    return found


def resolve(name: str) -> Any:
    """Return a module or something in one."""
    try:
        return importlib.import_module(name)
    except ImportError:
        home, _, leaf = name.rpartition(".")
        return getattr(resolve(home), leaf)


def exported(module: Any) -> list[str]:
    """Return what a page shows of a module."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__]
    return [n for n in getattr(module, "__all__", own) if not n.startswith("_")]


@cache
def shown() -> list[Any]:
    """Everything that is rendered: ``::: name``, and its members or those listed."""
    found = []
    for page in PAGES.glob("*.md"):
        for name, options in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            value = resolve(name)
            listed = re.search(r"members: \[([^\]]*)\]", options)
            names = exported(value) if inspect.ismodule(value) else []
            if listed:
                names = listed[1].replace(" ", "").split(",") if listed[1] else []
            found += [value, *(getattr(value, n) for n in names)]
    return found


EXPORTED = [(m, n) for m in public_modules() for n in exported(importlib.import_module(m))]


@pytest.mark.parametrize(("module", "name"), EXPORTED, ids=[f"{m}.{n}" for m, n in EXPORTED])
def test_documented(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value) or inspect.isroutine(value):
        text = value.__doc__ or ""
        assert len(text.split()) >= 3, "a docstring"
        assert not text.startswith(f"{name}("), "one that is written, not made by dataclasses"
    assert any(value is one for one in shown()), "a place in docs/reference"


def test_all_pages_are_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f"{page.relative_to(ROOT / 'docs').as_posix()}\n" in text
