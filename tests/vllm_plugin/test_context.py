"""Videos longer than the context stand where they stand in transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import earlytom
from earlytom.method import Method
from earlytom.methods import EVS, Afterimage
from tests.vllm_plugin.engine import Answer, ask, llava, request, serving
from tests.vllm_plugin.reference import LlavaReference, same

pytestmark = pytest.mark.vllm
PROMPT = "<user> <video> <video> what color is the square? <assistant>"


@pytest.mark.parametrize(
    "method",
    [Afterimage(retention_ratio=0.2, weight_power=0), EVS(retention_ratio=0.2)],
    ids=lambda m: m.name,
)
def test_videos_longer_than_the_context(
    shipped: Path, clips: Any, tmp_path: Path, method: Method
) -> None:
    """16 frames of 49 tokens where 448 positions are for a video."""
    short = tmp_path / "short"
    shutil.copytree(shipped, short)
    config = json.loads((short / "config.json").read_text("utf-8"))
    config["text_config"]["max_position_embeddings"] = 512
    (short / "config.json").write_text(json.dumps(config), "utf-8")
    reference = LlavaReference(short)
    ids = reference.processor.tokenizer.encode(PROMPT)
    wide = [x for i in ids for x in [i] * (1 + (i == reference.video_token) * 16 * 49)]
    pixels = reference.processor.video_processor(clips[:2], return_tensors="pt")
    with method(reference.model), torch.no_grad():
        out = reference.model(input_ids=torch.tensor([wide]), **pixels, logits_to_keep=1)
        assert earlytom.last_report(reference.model).positions == "squeeze"
    best = out.logits[0, -1].log_softmax(-1).topk(5)
    expected = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    changes = {"max_model_len": 512, "max_num_batched_tokens": 512}
    with serving(short, llava(method.to_dict()), **changes) as running:
        (got,) = ask(running, request(PROMPT, clips[:2]), tokens=1)
    same(got, Answer((int(best.indices[0]),), (expected,), got.prompt, 0))
