"""Shared by all tests: models of every family, and one torch thread per worker.

Tiny tensors gain nothing from more threads.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

if not torch.cuda.is_available():
    # kernels run in Triton's interpreter, which has to be chosen before anything imports Triton
    os.environ["TRITON_INTERPRET"] = "1"

from earlytom.pipeline import VideoQA
from tests.clip_families import CLIP_FAMILIES
from tests.families import FAMILIES, Family
from tests.image_families import IMAGE_FAMILIES
from tests.matrix import FEW_PROMPTS, METHODS, MOST_PROMPTS, REPRESENTATIVE
from tests.pipeline import checkpoint
from tests.video import clips

torch.set_num_threads(1)
ALL_FAMILIES = [*FAMILIES, *CLIP_FAMILIES, *IMAGE_FAMILIES]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All but one family run a small part of the matrix, the rest of it when slow.

    That one runs all methods, some on fewer prompts and in one half precision. The number of tests
    would otherwise grow with families times methods. Methods that a family
    refuses are left out (a test has them all). Families that are not ``core`` leave out other tests
    than the matrix too, which are written for inputs of LLaVA.
    """
    gone = set()
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        family = params.get("family")
        if not isinstance(family, Family):
            continue
        if params.get("name") in METHODS and family.refuses(METHODS[params["name"]]):
            gone.add(item)
        if item.path.name != "test_matrix.py":
            if not family.core and item.path.parent.name != "packed":  # that is for such families
                gone.add(item)
            continue
        chosen = params.get("name", REPRESENTATIVE[0]) in REPRESENTATIVE
        prompt = params.get("prompt")
        if family.whole_matrix:
            rest = prompt not in (None, *MOST_PROMPTS) or params.get("dtype") is torch.bfloat16
            slow = rest and not chosen
        else:
            slow = not chosen or prompt not in (None, *FEW_PROMPTS)
        if slow:
            item.add_marker(pytest.mark.slow)
    config.hook.pytest_deselected(items=[item for item in items if item in gone])
    items[:] = [item for item in items if item not in gone]


@pytest.fixture(scope="module", params=ALL_FAMILIES, ids=lambda f: f.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def model(family: Family) -> nn.Module:
    return family.model()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LLaVA-OneVision checkpoint on disk: 16 patches and 4 tokens per frame."""
    return checkpoint.build(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def qa(folder: Path) -> VideoQA:
    return VideoQA.load(folder, device="cpu")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with 60 frames in two seconds."""
    return clips.write(tmp_path_factory.mktemp("video") / "clip.mp4", 60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of the system, driven by playwright; neither is a dependency of this package."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
