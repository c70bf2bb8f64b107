from __future__ import annotations

import pytest

from earlytom.inspect import inspect_video
from earlytom.pipeline import VideoQA
from earlytom.video import load_video
from tests.matrix import METHODS

QUESTION = 'what <b>moves</b> & "first" </title></style></script><script>alert(1)</script>'
SHOWN = (
    "earlytom-budget",
    "earlytom-official",
    "earlytom-paper",
    "earlytom-embeddings",
    "earlytom-official-inner",
    "afterimage",
    "visionzip",
    "evs",
    "uniform-frames",
    "pool-time",
    "dycoke",
    "prunevid",
    "fastvid",
    "holitom",
    "prumerge",
    "tome",
    "tome-falling",
    "ficoco",
    "resize",
    "ipcv",
    "fastv",
    "pyramiddrop",
    "framefusion",
    "sparsevlm-v2",
    "mustdrop",
    "compose-tome-holitom",
    "compose-tome-fastv",
    "compose-earlytom-holitom",
)


@pytest.fixture(scope="session")
def found(folder, clip):
    """Everything that a page can show, for all methods of ``SHOWN``."""
    qa = VideoQA.load(folder, device="cpu")
    methods = {name: METHODS[name] for name in SHOWN}
    return inspect_video(qa, load_video(clip, 8), QUESTION, methods, max_new_tokens=2)
