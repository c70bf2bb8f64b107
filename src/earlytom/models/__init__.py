"""One small adapter per model family: where its layers, grids and positions are."""

from __future__ import annotations

from typing import Any

from torch import nn

from earlytom.errors import UnsupportedModelError
from earlytom.models.base import Adapter
from earlytom.models.llava_onevision import LlavaOnevision
from earlytom.models.llava_video import LAYOUT, LlavaVideo, use_llava_video_layout

__all__ = [
    "Adapter",
    "find_adapter",
    "supported_model_types",
    "unwrap",
    "use_llava_video_layout",
]

FAMILIES: tuple[type[Adapter], ...] = (LlavaOnevision,)


def supported_model_types() -> list[str]:
    """Return the ``config.model_type`` values that have an adapter."""
    return sorted(t for family in FAMILIES for t in family.model_types)


def unwrap(model: Any) -> nn.Module:
    """Return the module inside a pipeline (or the module itself)."""
    module = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(
            f"expected a transformers model or pipeline, got {type(model).__name__}"
        )
    return module


def find_adapter(model: Any) -> Adapter:
    """Find the video model inside ``model`` (PEFT-, compile- or pipeline-wrapped too).

    Raises:
        UnsupportedModelError: no module of a known family; the message lists the families.
    """
    root = unwrap(model)
    for module in root.modules():
        if not callable(getattr(module, "get_video_features", None)):
            continue
        if not isinstance(getattr(module, "language_model", None), nn.Module):
            continue
        if LAYOUT in module.__dict__:
            return LlavaVideo(module)
        kind = getattr(getattr(module, "config", None), "model_type", None)
        for family in FAMILIES:
            if kind in family.model_types:
                return family(module)
    kind = getattr(getattr(root, "config", None), "model_type", type(root).__name__)
    raise UnsupportedModelError(
        f"{kind!r} is not supported; supported model types: {', '.join(supported_model_types())}"
    )
