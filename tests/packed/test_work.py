"""Closed-form operation counts of packed towers against PyTorch's counter; checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from earlytom import EarlyTom
from earlytom.bench.flops import encoder_flops, encoder_work, llm_flops, prompt_work
from earlytom.errors import UnsupportedModelError
from earlytom.hf.api import last_report
from earlytom.method import Method
from earlytom.models import find_adapter
from earlytom.pipeline.loading import load_model
from tests.families import PROMPTS, Family, forward
from tests.matrix import METHODS
from tests.packed.test_towers import Choose

SHAPE = (6, 10, 12)
COUNTED = {
    "full": None,
    "choose": Choose(layer=0, frames=(0, 2, 3)),
    "last": Choose(layer=5, frames=(0, 2), step=3),
    "earlytom": EarlyTom(retention_ratio=0.25),
    "fastv": METHODS["fastv"],
}


@pytest.mark.parametrize("name", COUNTED)
def test_closed_form_agrees_with_the_counter(family: Family, name: str) -> None:
    method: Method | None = COUNTED[name]
    model: Any = family.model(attn="eager")  # the counter does not know kernels of the CPU
    adapter, inputs = find_adapter(model), family.inputs(PROMPTS["one_video"], shapes=[SHAPE])

    def call() -> int:
        with FlopCounterMode(display=False) as counter:
            forward(model, inputs, use_cache=True, logits_to_keep=1)
        parts = (".visual", ".language_model", ".lm_head")
        counts = counter.get_flop_counts()
        return sum(sum(ops.values()) for name, ops in counts.items() if name.endswith(parts))

    report = video = None
    columns = inputs["input_ids"].shape[1]
    if method is None:
        counted = call()
    else:
        with method(model):
            counted = call()
        report = last_report(model)
        assert report is not None
        video = report.videos[0]
        columns = (report.prompt_columns or (columns, columns))[1]
    grid = SHAPE[1] // 2, SHAPE[2] // 2
    encoder = encoder_flops(adapter, encoder_work(adapter, SHAPE[0], method, video, grid))
    llm = llm_flops(model, adapter, prompt_work(adapter, columns, method, report))
    assert sum(encoder) + llm == pytest.approx(counted, rel=0.003)
    with pytest.raises(UnsupportedModelError, match="grid"):
        encoder_work(adapter, SHAPE[0], method, video)


def test_checkpoint_in_the_published_layout(family: Family, tmp_path: Path) -> None:
    """Names of the weights as on the hub, and a config whose text part lies at the top."""
    from safetensors import safe_open

    model, inputs = family.model(), family.inputs(PROMPTS["one_video"])
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = {k.split(".layers.")[0].split(".blocks.")[0] for k in file.keys()}  # noqa: SIM118
    assert PUBLISHED[family.name] <= names
    config = json.loads((tmp_path / "config.json").read_text())
    if family.name != "qwen3_vl":
        text = config.pop("text_config")
        rope = text.pop("rope_parameters")
        text["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
        config = {**text, **config, "rope_theta": rope["rope_theta"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(tmp_path, "cpu")
    for method in (None, METHODS["earlytom-budget"]):
        logits = []
        for m in (model, loaded):
            if method is None:
                logits.append(forward(m, inputs).logits)
            else:
                with method(m):
                    logits.append(forward(m, inputs).logits)
        assert torch.equal(*logits)


PUBLISHED = {
    "qwen2_5_vl": {"visual", "model", "lm_head.weight", "visual.patch_embed.proj.weight"},
    "qwen2_vl": {"visual", "model", "lm_head.weight", "visual.patch_embed.proj.weight"},
    "qwen3_vl": {"model.visual", "model.language_model", "lm_head.weight"},
}
