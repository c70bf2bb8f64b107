"""Models of every family, restored after each test, and fixtures that watch what they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import earlytom
from earlytom.hf.compiled import CompiledTower
from tests.families import Family

TO_HOST = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")


@pytest.fixture(scope="module")
def subject(owner: Family) -> nn.Module:
    """The model of a test that brings its own list of families."""
    return owner.model()


@pytest.fixture(autouse=True)
def _always_restored(request: pytest.FixtureRequest) -> Iterator[None]:
    used = [name for name in ("model", "subject") if name in request.fixturenames]
    models = [request.getfixturevalue(name) for name in used]
    yield
    for model in models:
        earlytom.restore(model)


@pytest.fixture
def host_copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of calls that make a GPU wait for the host."""
    calls: list[str] = []
    depth = [0]
    for name in TO_HOST:
        original = getattr(torch.Tensor, name)

        def spy(self: Any, *args: Any, _o: Any = original, _n: str = name, **kw: Any) -> Any:
            if not depth[0]:
                calls.append(_n)
            depth[0] += 1
            try:
                return _o(self, *args, **kw)
            finally:
                depth[0] -= 1

        monkeypatch.setattr(torch.Tensor, name, spy)
    return calls


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """No compiled graphs of other tests in the compiler's caches, and none left behind."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(frames, videos) of every call that the compiled encoder took."""
    calls: list[tuple[int, int]] = []
    original = CompiledTower._for

    def spy(self: Any, frames: int, videos: int) -> Any:
        calls.append((frames, videos))
        return original(self, frames, videos)

    monkeypatch.setattr(CompiledTower, "_for", spy)
    return calls
