from __future__ import annotations

import pytest

from earlytom.pipeline import VideoQA
from tests.pipeline import checkpoint
from tests.pipeline.qwen_checkpoint import CLASSES, build_qwen
from tests.video import clips


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A random LLaVA-OneVision checkpoint on disk."""
    return checkpoint.build(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session", params=CLASSES)
def qwen(request, tmp_path_factory):
    """A random checkpoint of each Qwen-VL family on disk."""
    return build_qwen(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def qa(folder):
    return VideoQA.load(folder, device="cpu")


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return clips.write(tmp_path_factory.mktemp("video") / "clip.mp4", 60)
