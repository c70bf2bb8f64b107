from __future__ import annotations

import pytest

from tests.pipeline.qwen_checkpoint import CLASSES, build_qwen


@pytest.fixture(scope="session", params=CLASSES)
def qwen(request, tmp_path_factory):
    """A random checkpoint of each Qwen-VL family on disk."""
    return build_qwen(tmp_path_factory.mktemp(request.param), request.param)
