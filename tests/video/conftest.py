from __future__ import annotations

import pytest

from tests.video import clips


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """200 numbered frames, 30 per second, a key frame every 25."""
    return clips.write(tmp_path_factory.mktemp("video") / "clip.mp4", 200, gop=25)
