"""Other servers of a random Qwen2.5-VL: other positions, off, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from earlytom import EarlyTom
from earlytom.errors import ConfigError
from tests.vllm_plugin.engine import ask, qwen, request, serving
from tests.vllm_plugin.reference import same
from tests.vllm_plugin.test_qwen import prompt

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("positions", ["respace", "renumber"])
def test_other_positions(
    qwen_folder: Path, qwen_reference: Any, qwen_videos: Any, positions: str
) -> None:
    settings = {"retention_ratio": 0.25, "positions": positions}
    with serving(qwen_folder, qwen(settings)) as engine:
        (got,) = ask(engine, request(prompt(2), qwen_videos[:2]))
    same(got, qwen_reference.ask(prompt(2), qwen_videos[:2], method=EarlyTom(**settings)))


def test_off_is_vllms_own_model(qwen_folder: Path, qwen_videos: Any) -> None:
    asked = request(prompt(1), qwen_videos[:1])
    with serving(qwen_folder) as engine:
        (stock,) = ask(engine, asked)
    with serving(qwen_folder, qwen({"method": "none"})) as engine:
        (off,) = ask(engine, asked)
    assert off == stock


@pytest.mark.parametrize(
    ("settings", "changes", "words"),
    [
        ({"method": "afterimage", "weight_power": 0}, {}, "packed encoder"),
        ({}, {"video_pruning_rate": 0.5}, "a second time"),
        ({}, {"pipeline_parallel_size": 2}, "pipeline parallelism"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_loads(
    qwen_folder: Path, settings: Any, changes: Any, words: str
) -> None:
    with (
        pytest.raises((ConfigError, ValueError), match=words),
        serving(qwen_folder, qwen(settings), **changes),
    ):
        pass
