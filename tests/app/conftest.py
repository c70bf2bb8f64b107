from __future__ import annotations

import pytest

from earlytom.app.desk import Desk
from earlytom.pipeline import VideoQA
from tests.app import bad_files


@pytest.fixture(scope="session")
def desk(folder):
    """A random LLaVA-OneVision model: 16 patches and 4 tokens per frame, 8 frames."""
    return Desk(VideoQA.load(folder, device="cpu"), frames=8, max_new_tokens=3)


@pytest.fixture(scope="session")
def bad(tmp_path_factory, clip):
    """Files that are no videos, by what is wrong with them."""
    return bad_files.write_all(tmp_path_factory.mktemp("bad"), clip)
