"""Closed-form operation counts against PyTorch's counter, for families beside LLaVA-OneVision."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from earlytom.bench.flops import encoder_flops, encoder_work, llm_flops, prompt_work
from earlytom.errors import UnsupportedModelError
from earlytom.hf.api import compress, last_report
from earlytom.methods import load_method
from earlytom.models import find_adapter
from tests.clip_families import CLIP_FAMILIES
from tests.families import FRAMES, PROMPTS, Family
from tests.image_families import IMAGE_FAMILIES
from tests.toys import TOYS
from tests.toys_patches import PATCH_TOYS

OWNERS = {f.name: f for f in [*CLIP_FAMILIES, *IMAGE_FAMILIES]}
METHODS = {
    "full": None,
    "earlytom": load_method("earlytom", retention_ratio=0.25),
    "merge-last": TOYS["merge_last_layer"],
    "afterimage": load_method("afterimage", retention_ratio=0.25),
    "visionzip": load_method("visionzip", retention_ratio=0.2),
    # methods that compare patches do so inside the tower, which counts at this size
    "patches": PATCH_TOYS["patches-drop"],
    "patches-restored": PATCH_TOYS["patches-restored"],
    "patches-rebuild": PATCH_TOYS["patches-rebuild"],
    "resize": load_method("resize", retention_ratio=0.25),
    "fastv": load_method("fastv", retention_ratio=0.5),
}
# choosing tokens happens between these modules
TOWERS = (".vision_tower", ".video_tower", ".vision_model")
PARTS = (*TOWERS, ".multi_modal_projector", ".connector", ".language_model", ".text_model")


@pytest.fixture(scope="module", params=OWNERS)
def owner(request):
    return OWNERS[request.param]


@pytest.fixture(scope="module")
def live(owner: Family):
    return owner.model(attn="eager")  # the counter does not know the attention kernels of the CPU


@pytest.mark.parametrize("name", METHODS)
def test_closed_form_agrees_with_the_counter(owner, live, name):
    method, adapter = METHODS[name], find_adapter(live)
    inputs = owner.inputs(PROMPTS["one_video"])

    def call() -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            live(**inputs, use_cache=True, logits_to_keep=1)
        counts = counter.get_flop_counts()
        ends = (*PARTS, ".lm_head")
        return sum(sum(ops.values()) for name, ops in counts.items() if name.endswith(ends))

    report = video = None
    columns = inputs["input_ids"].shape[1]
    if method is None:
        counted = call()
    else:
        if owner.refuses(method):
            with pytest.raises(UnsupportedModelError):
                compress(live, method)
            return
        with method(live):
            counted = call()
        report = last_report(live)
        video = report.videos[0]
        columns = report.prompt_columns[1]
    work = encoder_work(adapter, FRAMES, method, video)
    assert len(work.layers) == len(adapter.layers)
    llm = llm_flops(live, adapter, prompt_work(adapter, columns, method, report))
    assert sum(encoder_flops(adapter, work)) + llm == pytest.approx(counted, rel=0.005)
