from __future__ import annotations

import pytest

from earlytom.pipeline import VideoQA
from tests.pipeline import checkpoint


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A random LLaVA-OneVision checkpoint on disk."""
    return checkpoint.build(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def qa(folder):
    return VideoQA.load(folder, device="cpu")
