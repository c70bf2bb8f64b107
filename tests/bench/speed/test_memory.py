"""Compression must not need more memory than the plain model does."""

from __future__ import annotations

import pytest
import torch

from earlytom import load_method
from earlytom.bench.speed.counting import count
from earlytom.bench.speed.workload import Workload, workload

MASKS = 0.01  # MiB: which columns of the prompt are visual
POLICIES = ("budget", "official", "paper")


@pytest.fixture(scope="module")
def work() -> Workload:
    given = {"named": True, "frames": 16, "batch": 1, "attn": None}
    return workload("tiny", **given, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def plain(work: Workload) -> float:
    return peak(work, None)


def peak(work: Workload, method) -> float:
    inputs = work.inputs(work.pixels())

    @torch.inference_mode()
    def call() -> None:
        work.model.generate(**inputs, do_sample=False, max_new_tokens=1)

    call()  # what the first call of a process leaves behind does not count
    if method is None:
        return count(call, work).allocated_mib
    with method(work.model):
        return count(call, work).allocated_mib


@pytest.mark.parametrize("ratio", [0.25, 0.05])
@pytest.mark.parametrize("policy", POLICIES)
def test_earlytom_peaks_no_higher(work, plain, policy: str, ratio: float) -> None:
    method = load_method("earlytom", retention_ratio=ratio, policy=policy)
    assert peak(work, method) <= plain + MASKS


@pytest.mark.parametrize("ratio", [0.5, 0.1])
@pytest.mark.parametrize("name", ["afterimage", "evs", "vidcom2"])
def test_other_methods_peak_no_higher(work, plain, name: str, ratio: float) -> None:
    assert peak(work, load_method(name, retention_ratio=ratio)) <= plain + MASKS
