"""Shared by the tests of the compiled encoder: small models, methods, comparisons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import earlytom
from earlytom import EarlyTom
from earlytom.method import Method
from earlytom.models import find_adapter
from tests.families import (
    FRAMES,
    Family,
    forward,
    llava_config,
    randomise,
)

FAMILY = Family("llava_onevision")
BUDGET = EarlyTom(retention_ratio=0.25, merge_layers=(0, 3), frames=(6, 3), fuse="average")
SMALL = EarlyTom(retention_ratio=0.25, merge_layers=(0,), frames=(4,), fuse="average")


def small_model(**vision: Any) -> nn.Module:
    """Two encoder layers, one decoder layer: quick to trace, where the mechanics are the point."""
    from transformers import LlavaOnevisionForConditionalGeneration

    config = llava_config()
    config.vision_config.num_hidden_layers = 2
    config.text_config.num_hidden_layers = 1
    config.text_config.layer_types = config.text_config.layer_types[:1]
    for name, value in vision.items():
        setattr(config.vision_config, name, value)
    model = LlavaOnevisionForConditionalGeneration._from_config(
        config, attn_implementation="sdpa"
    ).eval()
    randomise(model)
    return model


def same_reports(model: nn.Module, expected: Any) -> None:
    """The last report of ``model`` says the same as ``expected``, plans and tokens included."""
    found = earlytom.last_report(model)
    assert found is not None
    assert len(found.videos) == len(expected.videos)
    for a, b in zip(found.videos, expected.videos, strict=True):
        for name in ("frames_in", "merge_layers", "frames_per_merge_point", "tokens_out"):
            assert getattr(a, name) == getattr(b, name), name
        for name in ("plans", "first", "count", "slots"):
            assert getattr(a, name) == getattr(b, name), name
        for name in ("index", "received"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None), name
            assert x is None or torch.equal(x, y), name


def compare(model: nn.Module, method: Method, inputs: dict[str, Any], **settings: Any) -> float:
    """Run ``method`` on the engine, then compiled; return the largest difference of logits."""
    earlytom.compress(model, method)
    expected, report = forward(model, inputs).logits, earlytom.last_report(model)
    earlytom.compile(model, method, FRAMES, **{"backend": "eager", **settings})
    found = forward(model, inputs).logits
    same_reports(model, report)
    return float((found - expected).abs().max())


def features(model: nn.Module, pixels: Tensor, **kw: Any) -> Tensor:
    with torch.no_grad():
        out = find_adapter(model).inner.get_video_features(pixels, **kw)  # type: ignore[operator]
    rows = out if isinstance(out, Tensor) else out.pooler_output
    return rows.nan_to_num(7.0)
