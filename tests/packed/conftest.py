"""The shared matrix on models with packed vision towers, without the methods that these refuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import earlytom
from earlytom.method import Method
from tests.families import Family
from tests.matrix import METHODS
from tests.qwen import CONFIG, QwenFamily

HERE = Path(__file__).parent


def refused(method: Method) -> bool:
    """Whether ``method`` acts on single patches, or renumbers positions of several axes inside."""
    reduces = bool(method.reduce_layers(6)) or method.encoder_grid((3, 4)) is not None
    renumbers = bool(method.inner_points(4)) and method.inner_positions == "renumber"
    return reduces or method.reuse_layer(6) is not None or renumbers


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out refused methods; ``test_refusals`` has them all."""
    gone = []
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        method = METHODS.get(params.get("name", ""))
        if item.path == HERE / "test_matrix.py" and method is not None and refused(method):
            gone.append(item)
    config.hook.pytest_deselected(items=gone)
    items[:] = [item for item in items if item not in set(gone)]


@pytest.fixture(scope="module", params=[QwenFamily(name) for name in CONFIG], ids=lambda f: f.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def model(family: Family) -> nn.Module:
    return family.model()


@pytest.fixture(autouse=True)
def _always_restored(request: pytest.FixtureRequest) -> Iterator[None]:
    model = request.getfixturevalue("model") if "model" in request.fixturenames else None
    yield
    if model is not None:
        earlytom.restore(model)
