"""Models of every family, restored after each test, and fixtures that watch what they do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import earlytom
from earlytom.hf.compiled import CompiledTower

TO_HOST = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")


@pytest.fixture(autouse=True)
def _always_restored(request: pytest.FixtureRequest) -> Iterator[None]:
    model = request.getfixturevalue("model") if "model" in request.fixturenames else None
    yield
    if model is not None:
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
