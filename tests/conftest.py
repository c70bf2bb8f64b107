"""Shared by all tests: models of every family, and one torch thread per worker.

Tiny tensors gain nothing from more threads.
"""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

if not torch.cuda.is_available():
    # kernels run in Triton's interpreter, which has to be chosen before anything imports Triton
    os.environ["TRITON_INTERPRET"] = "1"

from tests.clip_families import CLIP_FAMILIES
from tests.families import FAMILIES, Family
from tests.image_families import IMAGE_FAMILIES
from tests.matrix import FEW_PROMPTS, METHODS, REPRESENTATIVE

torch.set_num_threads(1)
ALL_FAMILIES = [*FAMILIES, *CLIP_FAMILIES, *IMAGE_FAMILIES]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All but one family run a small part of the matrix, the rest of it when slow.

    The number of tests would otherwise grow with families times methods. Methods that a family
    refuses are left out (a test has them all). Families that are not ``core`` leave out other tests
    than the matrix too, which are written for inputs of LLaVA.
    """
    gone = set()
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        family = params.get("family")
        if not isinstance(family, Family) or family.whole_matrix:
            continue
        if params.get("name") in METHODS and family.refuses(METHODS[params["name"]]):
            gone.add(item)
        if item.path.name != "test_matrix.py":
            if not family.core and item.path.parent.name != "packed":  # that is for such families
                gone.add(item)
            continue
        chosen = params.get("name", REPRESENTATIVE[0]) in REPRESENTATIVE
        if not chosen or params.get("prompt", FEW_PROMPTS[0]) not in FEW_PROMPTS:
            item.add_marker(pytest.mark.slow)
    config.hook.pytest_deselected(items=[item for item in items if item in gone])
    items[:] = [item for item in items if item not in gone]


@pytest.fixture(scope="module", params=ALL_FAMILIES, ids=lambda f: f.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def model(family: Family) -> nn.Module:
    return family.model()


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
