"""The speed benchmark on packed towers: its inputs, its counts, and the published architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from earlytom.bench.contenders import contenders, entry
from earlytom.bench.flops import encoder_flops, encoder_work, llm_flops, prompt_work
from earlytom.bench.speed.architectures import architecture, build
from earlytom.bench.speed.packed import PackedWorkload
from earlytom.bench.speed.run import SpeedPlan, run_speed
from earlytom.bench.speed.workload import workload
from earlytom.errors import ConfigError
from earlytom.models import find_adapter
from tests.qwen import QwenFamily

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "attn": None}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen")
    QwenFamily("qwen2_5_vl").model().save_pretrained(path)
    return path


def test_methods_that_the_family_refuses_have_a_reason() -> None:
    model = QwenFamily("qwen2_5_vl").model()
    (row,) = contenders(["afterimage"])
    found = entry(row, 0.25, "auto", model, 4)
    assert found.method is None
    assert "not possible in Qwen2_5_VLModel" in str(found.error)


def test_counts_agree_with_the_formula(checkpoint: Path) -> None:
    plan = SpeedPlan(
        model=str(checkpoint), methods=("earlytom",), ratios=(0.25,), frames=8, repeats=1
    )
    found = run_speed(plan)["cases"]
    assert [c["tokens"] for c in found] == [4 * 256, 256]
    assert found[0]["frames_out"] == [4]
    for case in found:
        for part in ("encoder", "projector", "llm"):
            assert case["flops"][part] == pytest.approx(case["flops_counted"][part], rel=0.01)


def test_patches_are_those_of_the_published_processor(checkpoint: Path) -> None:
    """Patch by patch: two pictures, the four patches of a token side by side."""
    work = workload(str(checkpoint), named=False, frames=4, batch=1, **CPU)
    assert isinstance(work, PackedWorkload)
    pictures = super(PackedWorkload, work).pixels()[0]
    patches = work.pixels()
    inputs = work.inputs(patches)
    assert inputs["video_grid_thw"].tolist() == [[2, 32, 32]]
    assert int((inputs["mm_token_type_ids"] == 2).sum()) == 2 * 256
    for step, row, column in ((0, 0, 0), (1, 3, 17), (1, 31, 30)):
        token = (row // 2) * 16 + column // 2
        place = (step * 256 + token) * 4 + (row % 2) * 2 + column % 2
        high, wide = slice(14 * row, 14 * row + 14), slice(14 * column, 14 * column + 14)
        expected = pictures[2 * step : 2 * step + 2, :, high, wide].transpose(0, 1).flatten()
        assert torch.equal(patches[place], expected)


def test_frames_must_be_even(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="even"):
        workload(str(checkpoint), named=False, frames=5, batch=1, **CPU)


def test_published_architecture() -> None:
    """Operations of 64 pictures of 448 x 448, counted by PyTorch on the meta device before."""
    model = build(architecture("qwen2.5-vl-7b"), torch.device("meta"), torch.bfloat16, None)
    adapter = find_adapter(model)
    encoder, projector = encoder_flops(adapter, encoder_work(adapter, 32, grid=(16, 16)))
    assert encoder == pytest.approx(42.37e12, rel=2e-3)
    assert projector == pytest.approx(0.73e12, rel=1e-2)
    work = prompt_work(adapter, 8192)
    assert llm_flops(model, adapter, work) == pytest.approx(134.4e12, rel=1e-2)
