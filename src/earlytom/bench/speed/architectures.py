"""Published architectures with random weights: nothing is downloaded, only speed is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from earlytom.errors import ConfigError, UnsupportedModelError

_SIGLIP_SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
_QWEN2 = {
    "model_type": "qwen2",
    "vocab_size": 152000,
    "max_position_embeddings": 32768,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
}
_QWEN2_7B = _QWEN2 | {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
_QWEN25_VL_TEXT = {k: v for k, v in _QWEN2_7B.items() if k not in ("model_type", "rope_theta")} | {
    "vocab_size": 152064,
    "max_position_embeddings": 128000,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1_000_000.0,
        "mrope_section": [16, 24, 24],
    },
}
_QWEN25_VL_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "out_hidden_size": 3584,
}
_QWEN2_05B = _QWEN2 | {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Architecture:
    """A published model without its weights.

    Attributes:
        name: what ``--arch`` takes.
        source: the checkpoint whose configuration this is.
        text: configuration of the language model.
        frames: frames that the EarlyTom paper gives it.
        llava_video: pooling and newlines of LLaVA-Video's own code.
        vision: configuration of a Qwen2.5-VL tower; None: the SigLIP tower of LLaVA-OneVision.
    """

    name: str
    source: str
    text: dict[str, Any]
    frames: int = 32
    llava_video: bool = False
    vision: dict[str, Any] | None = None


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(
            "llava-onevision-0.5b", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", _QWEN2_05B
        ),
        Architecture("llava-onevision-7b", "llava-hf/llava-onevision-qwen2-7b-ov-hf", _QWEN2_7B),
        Architecture("llava-video-7b", "lmms-lab/LLaVA-Video-7B-Qwen2", _QWEN2_7B, 64, True),
        Architecture(
            "qwen2.5-vl-7b",
            "Qwen/Qwen2.5-VL-7B-Instruct",
            _QWEN25_VL_TEXT,
            64,
            vision=_QWEN25_VL_VISION,
        ),
    )
}


def architecture(name: str) -> Architecture:
    """Return a published architecture.

    Raises:
        ConfigError: no such name.
    """
    try:
        return ARCHITECTURES[name]
    except KeyError:
        known = ", ".join([*ARCHITECTURES, "tiny"])
        raise ConfigError(f"unknown architecture {name!r}; there are: {known}") from None


def build(arch: Architecture, device: torch.device, dtype: torch.dtype, attn: str | None) -> Any:
    """Return the model with seeded random weights.

    Raises:
        UnsupportedModelError: the attention implementation is not available here.
    """
    from transformers import LlavaOnevisionConfig, Qwen2_5_VLConfig

    from earlytom.models import use_llava_video_layout

    if arch.vision is not None:
        config = Qwen2_5_VLConfig(
            vision_config=dict(arch.vision),
            text_config=dict(arch.text),
            image_token_id=151655,
            video_token_id=151656,
            vision_start_token_id=151652,
            vision_end_token_id=151653,
            tie_word_embeddings=arch.text["tie_word_embeddings"],
        )
        return random_model(config, device, dtype, attn)
    config = LlavaOnevisionConfig(
        vision_config=dict(_SIGLIP_SO400M),
        text_config=dict(arch.text),
        image_token_index=151646,
        video_token_index=151647,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=arch.text["tie_word_embeddings"],
    )
    model = random_model(config, device, dtype, attn)
    return use_llava_video_layout(model) if arch.llava_video else model


def random_model(
    config: Any, device: torch.device, dtype: torch.dtype, attn: str | None, seed: int = 0
) -> Any:
    """Return a model of ``config`` with seeded random weights, in evaluation mode.

    Raises:
        UnsupportedModelError: no such model class, or the attention is not available here.
    """
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    options = {} if attn is None else {"attn_implementation": attn}
    try:
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype, **options)
    except (ImportError, ValueError) as e:
        raise UnsupportedModelError(f"cannot build the model: {e}".splitlines()[0]) from e
    return model.eval().requires_grad_(False)
