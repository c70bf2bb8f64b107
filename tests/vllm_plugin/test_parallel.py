"""Two tensor-parallel processes on the CPU decide alike and answer as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from earlytom import EarlyTom
from tests.vllm_plugin.engine import ask, qwen, request, serving
from tests.vllm_plugin.reference import same
from tests.vllm_plugin.test_qwen import prompt

pytestmark = pytest.mark.vllm


def test_two_processes_answer_as_one(
    qwen_folder: Path, qwen_reference: Any, qwen_videos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # attention is measured over the heads of both, and frames are merged by what it says
    settings = {
        "retention_ratio": 0.25,
        "selection": "global",
        "merge_layers": [1, 2],
        "merge_rest": True,
    }
    method = EarlyTom(**{**settings, "merge_layers": (1, 2)})
    with serving(qwen_folder, qwen(settings), tensor_parallel_size=2) as engine:
        for videos in (1, 3):
            (got,) = ask(engine, request(prompt(videos), qwen_videos[:videos]))
            expected = qwen_reference.ask(prompt(videos), qwen_videos[:videos], method=method)
            same(got, expected)
