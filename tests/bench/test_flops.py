"""Closed-form operation counts against PyTorch's counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from earlytom.bench.flops import encoder_flops, encoder_work, llm_flops, prompt_work
from earlytom.hf.api import last_report
from earlytom.methods import load_method
from earlytom.models import find_adapter
from earlytom.tiny import weights_path
from earlytom.tiny.vocabulary import ASSISTANT_ID, USER_ID, VIDEO_ID

FRAMES = 8
METHODS = {
    "full": None,
    "earlytom": load_method("earlytom", retention_ratio=0.25),
    "earlytom-official": load_method("earlytom", policy="official", retention_ratio=0.25),
    "afterimage": load_method("afterimage", retention_ratio=0.25),
    "visionzip": load_method("visionzip", retention_ratio=0.2),
    "tome": load_method("tome", retention_ratio=0.25),
    "mustdrop": load_method("mustdrop", retention_ratio=0.25),
    "resize": load_method("resize", retention_ratio=0.25),
    "fastv": load_method("fastv", retention_ratio=0.25),
    "framefusion": load_method("framefusion", retention_ratio=0.5),
    "holitom-inner": load_method("holitom", retention_ratio=0.5, inner_merge_layer=4),
}


@pytest.fixture(scope="module")
def model():
    # the counter does not know the attention kernels of the CPU
    found = AutoModelForImageTextToText.from_pretrained(
        weights_path(), dtype=torch.float32, attn_implementation="eager"
    )
    return found.eval()


@pytest.mark.parametrize("name", METHODS)
def test_closed_form_agrees_with_the_counter(model, name):
    method, adapter = METHODS[name], find_adapter(model)
    pixels = torch.randn(1, FRAMES, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    ids = [USER_ID, *[VIDEO_ID] * adapter.placeholder_count([FRAMES]), 9, 10, 11, ASSISTANT_ID]

    def call() -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(
                input_ids=torch.tensor([ids]),
                pixel_values_videos=pixels,
                use_cache=True,
                logits_to_keep=1,
            )
        # choosing tokens happens between these modules
        parts = (".vision_tower", ".multi_modal_projector", ".language_model", ".lm_head")
        counts = counter.get_flop_counts()
        return sum(sum(ops.values()) for name, ops in counts.items() if name.endswith(parts))

    report = video = None
    columns = len(ids)
    if method is None:
        counted = call()
    else:
        with method(model):
            counted = call()
        report = last_report(model)
        video = report.videos[0]
        columns = report.prompt_columns[1]
    encoder = encoder_flops(adapter, encoder_work(adapter, FRAMES, method, video))
    llm = llm_flops(model, adapter, prompt_work(adapter, columns, method, report))
    assert sum(encoder) + llm == pytest.approx(counted, rel=0.01)


def test_less_is_counted_where_less_is_run(model):
    adapter = find_adapter(model)
    full = encoder_work(adapter, 16)
    assert full.layers[0].attention == full.patches == 196
    assert encoder_flops(adapter, full)[0] == pytest.approx(
        2 * encoder_flops(adapter, encoder_work(adapter, 8))[0]
    )
    short, long = (llm_flops(model, adapter, prompt_work(adapter, n)) for n in (100, 200))
    assert long > 2 * short  # attention is quadratic
