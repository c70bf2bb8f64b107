"""Every Python block of README.md and docs/ runs, those of a page one after the other.

Blocks may use ``model``, ``inputs`` and ``method``, which readers have of their own: the shipped
model, a prompt with a video of 16 frames, and a method.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import earlytom
from earlytom import models, registry
from earlytom.pipeline import VideoQA
from earlytom.tiny import make_clip
from tests.docs.blocks import ROOT, all_blocks

PYTHON = [b for b in all_blocks() if b.kind == "python"]
RUN = sorted({b.page for b in PYTHON if b.reason is None})
SLOW = {"docs/tiny-model.md"}


@pytest.fixture(scope="module")
def qa() -> VideoQA:
    return VideoQA.load(device="cpu")


@pytest.fixture
def names(qa: VideoQA, clip: Path, tmp_path: Path, monkeypatch: Any) -> Iterator[dict[str, Any]]:
    """What readers have; what a page registers is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    monkeypatch.setattr(models, "_OTHERS", list(models._OTHERS))
    shutil.copy(clip, "clip.mp4")
    inputs = qa.preprocessor(torch.from_numpy(make_clip(7).frames), "how many shots are there?")
    method = earlytom.EarlyTom(retention_ratio=0.25)
    method.save("tuned")  # as `earlytom tune --out tuned` would
    yield {"__name__": "page", "model": qa.model, "inputs": inputs, "method": method, "qa": qa}
    earlytom.restore(qa.model)


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in RUN]
)
def test_python(page: str, names: dict[str, Any]) -> None:
    for block in PYTHON:
        if block.page == page and block.reason is None:
            code = "\n" * (block.line - 1) + block.text  # errors name the line of the page
            exec(compile(code, str(ROOT / page), "exec", dont_inherit=True), names)


@pytest.mark.parametrize(
    "block", [b for b in PYTHON if b.reason], ids=lambda b: f"{b.page}:{b.line}"
)
def test_blocks_that_are_not_run_are_python(block: Any) -> None:
    compile(block.text, block.page, "exec")
