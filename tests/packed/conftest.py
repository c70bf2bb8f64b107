"""The shared matrix on models with packed vision towers, without the methods that these refuse."""

from __future__ import annotations

import pytest

from tests.families import Family
from tests.hf.conftest import _always_restored  # noqa: F401
from tests.qwen import CONFIG, QwenFamily


@pytest.fixture(scope="module", params=[QwenFamily(name) for name in CONFIG], ids=lambda f: f.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param
