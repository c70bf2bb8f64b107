from __future__ import annotations

import pytest

from earlytom.app.desk import Desk
from earlytom.pipeline import VideoQA
from tests.app import bad_files
from tests.pipeline import checkpoint
from tests.video import clips


@pytest.fixture(scope="session")
def desk(tmp_path_factory):
    """A random LLaVA-OneVision model: 16 patches and 4 tokens per frame, 8 frames."""
    folder = checkpoint.build(tmp_path_factory.mktemp("checkpoint"))
    return Desk(VideoQA.load(folder, device="cpu"), frames=8, max_new_tokens=3)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return clips.write(tmp_path_factory.mktemp("video") / "clip.mp4", 60)


@pytest.fixture(scope="session")
def bad(tmp_path_factory, clip):
    """Files that are no videos, by what is wrong with them."""
    return bad_files.write_all(tmp_path_factory.mktemp("bad"), clip)
