"""Whole models with methods on them give the same logits with kernels as without.

float32; tolerance 1e-4 for logits of about 1. A token at the edge of a selection might flip by
rounding; on these inputs none does.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from earlytom.hf import reuse
from tests.families import PROMPTS, build_llava_onevision, forward, llava_inputs
from tests.kernels.helpers import both, kernel_runs
from tests.matrix import METHODS

FAST = {"earlytom-budget", "earlytom-official-inner", "afterimage"}
NAMES = [
    pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
    for name in METHODS
    if not name.startswith("toy-")
]


@pytest.fixture(scope="module")
def model(device: torch.device) -> nn.Module:
    return build_llava_onevision().to(device)


def inputs_on(device: torch.device, prompt: str) -> dict[str, Any]:
    inputs = llava_inputs(PROMPTS[prompt])
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


@pytest.mark.parametrize("name", NAMES)
def test_methods(model: nn.Module, device: torch.device, name: str) -> None:
    inputs = inputs_on(device, "one_video" if name in FAST else "batch_mixed")
    with METHODS[name](model):
        found, expected = both(lambda: forward(model, inputs).logits)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["sdpa", "eager", "training"])
def test_only_plain_attention_is_replaced(device: torch.device, case: str) -> None:
    model = build_llava_onevision(attn="eager" if case == "eager" else "sdpa").to(device)
    tower = model.model.vision_tower  # type: ignore[union-attr]
    for layer in tower.encoder.layers:  # type: ignore[union-attr]
        layer.self_attn.dropout = 0.1
        layer.self_attn.train(case == "training")
    with (
        METHODS["afterimage"](model),
        kernel_runs(),
        mock.patch.object(reuse, "packed_attention", wraps=reuse.packed_attention) as packed,
    ):
        forward(model, inputs_on(device, "one_video"))
    assert packed.called == (case == "sdpa")
