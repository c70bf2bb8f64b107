"""Checkpoints and references that several files use; made once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from earlytom.bench.environment import environment
from earlytom.files import write_text
from earlytom.tiny import make_clip, weights_path
from tests.vllm_plugin import models
from tests.vllm_plugin.engine import metadata, noise
from tests.vllm_plugin.reference import SEEN, TOLERANCE, LlavaReference, QwenReference


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity", help="file for what comparisons of answers came to, as JSON")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the largest difference of every test, if all of them passed."""
    path = session.config.getoption("--parity", None)
    if path is None or exitstatus != 0:
        return
    around = environment(1, "float32", "CPU_ATTN")
    found = {"environment": around, "tolerance": TOLERANCE, "largest_logprob_difference": SEEN}
    write_text(Path(path), json.dumps(found, indent=1) + "\n")


@pytest.fixture(scope="session")
def shipped() -> Path:
    return weights_path()


@pytest.fixture(scope="session")
def clips() -> list:
    """Three clips, the last one shorter."""
    return [make_clip(1, 16).frames, make_clip(2, 16).frames, make_clip(3, 8).frames]


@pytest.fixture(scope="session")
def llava_reference(shipped: Path) -> LlavaReference:
    return LlavaReference(shipped)


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.qwen2_5_vl(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def qwen_videos() -> list:
    """Different lengths, and seconds between frames that do not round well."""
    shapes = ((16, 0, 0.5), (12, 1, 0.3), (6, 2, 1.7))
    return [(noise(n, seed), metadata(n, seconds)) for n, seed, seconds in shapes]


@pytest.fixture(scope="session")
def qwen_reference(qwen_folder: Path) -> QwenReference:
    return QwenReference(qwen_folder)
