from __future__ import annotations

from pathlib import Path

import pytest

from earlytom.tiny import write_video


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated clip: pages ask about its shapes."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, seed=7)
    return path
