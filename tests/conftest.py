"""Shared by all tests: models of every family, and one torch thread per worker.

Tiny tensors gain nothing from more threads.
"""

import pytest
import torch
from torch import nn

from tests.families import FAMILIES, Family

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda f: f.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(scope="module")
def model(family: Family) -> nn.Module:
    return family.model()
