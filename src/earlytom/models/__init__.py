"""One small adapter per model family: where its layers, grids and positions are."""

from __future__ import annotations

from typing import Any

from torch import nn

from earlytom.errors import UnsupportedModelError
from earlytom.models.base import Adapter
from earlytom.models.image_frames import use_frame_prompts
from earlytom.models.internvl import InternVL
from earlytom.models.llava_next_video import LlavaNextVideo
from earlytom.models.llava_onevision import LlavaOnevision
from earlytom.models.llava_video import LAYOUT, LlavaVideo, use_llava_video_layout
from earlytom.models.qwen2_5_vl import Qwen25VL
from earlytom.models.qwen2_vl import Qwen2VL
from earlytom.models.qwen3_vl import Qwen3VL
from earlytom.models.smolvlm import SmolVLM
from earlytom.models.video_llava import VideoLlava

__all__ = [
    "Adapter",
    "find_adapter",
    "supported_model_types",
    "unwrap",
    "use_frame_prompts",
    "use_llava_video_layout",
]

FAMILIES: tuple[type[Adapter], ...] = (
    LlavaOnevision,
    Qwen25VL,
    Qwen2VL,
    Qwen3VL,
    LlavaNextVideo,
    VideoLlava,
    InternVL,
    SmolVLM,
)


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
        kind = getattr(getattr(module, "config", None), "model_type", None)
        for family in FAMILIES:
            if kind not in family.model_types:
                continue
            if not callable(getattr(module, family.features_name, None)):
                continue
            if not isinstance(getattr(module, family.language_name, None), nn.Module):
                continue
            return LlavaVideo(module) if LAYOUT in module.__dict__ else family(module)
    kind = getattr(getattr(root, "config", None), "model_type", type(root).__name__)
    raise UnsupportedModelError(
        f"{kind!r} is not supported; supported model types: {', '.join(supported_model_types())}"
    )
