"""What the files of a checkpoint say about its preprocessing."""

from __future__ import annotations

import importlib.util
import logging
import math
from typing import Any

from earlytom.preprocess.checkpoint import load_error, read_json, read_text
from earlytom.preprocess.frames import FrameConfig
from earlytom.preprocess.packed import MODEL_TYPES
from earlytom.preprocess.patches import PatchConfig

logger = logging.getLogger(__name__)


def official_processor(name: str) -> Any | None:
    """Return the official processor of a checkpoint, None if it cannot be loaded here."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(name)
    except Exception as e:  # torchvision without its operators, no pillow, no processor, ...
        logger.info("official processor of %s not used: %s", name, e)
        return None
    return processor if hasattr(processor, "tokenizer") else None


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer of a checkpoint.

    Raises:
        EarlyTomError: there is none, or it is broken.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as e:
        raise load_error(name, e) from e


def frame_settings(name: str, ours: dict[str, Any], kind: str) -> FrameConfig | PatchConfig:
    """Return what the video processor of a checkpoint does to frames.

    Args:
        name: of the checkpoint.
        ours: its ``processor_config.json``.
        kind: its model type.

    Raises:
        ConfigError: a step that is not known here.
    """
    data = ours.get("video_processor")
    for file in ("video_preprocessor_config.json", "preprocessor_config.json"):
        data = data or read_json(name, file)
    if kind in MODEL_TYPES:
        return PatchConfig.from_dict(data or {}, per_video=kind == "qwen3_vl")
    return FrameConfig.from_dict(data or {})


def chat_template(name: str, ours: dict[str, Any]) -> str | None:
    """Return the template beside a checkpoint, None if only its tokenizer may have one."""
    template = ours.get("chat_template") or read_text(name, "chat_template.jinja")
    if template is None:
        template = (read_json(name, "chat_template.json") or {}).get("chat_template")
    return template if isinstance(template, str) else None


def tokens_per_frame(config: dict[str, Any], ours: dict[str, Any]) -> int:
    """Tokens of a frame after 2x2 pooling: ``ceil(side / 2) ** 2``."""
    n = ours.get("num_image_tokens")
    if n is None:
        vision = config.get("vision_config") or {}
        n = (int(vision.get("image_size", 384)) // int(vision.get("patch_size", 14))) ** 2
    return int(math.ceil(math.isqrt(int(n)) / 2) ** 2)
