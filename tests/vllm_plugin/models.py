"""Checkpoints that vLLM and transformers both load: the shipped model and a random Qwen2.5-VL."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from earlytom.tiny import weights_path

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if 'video' in c['type'] %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'image' in c['type'] %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>{% endfor %}<|im_start|>"
)
SPECIAL = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]


def stock_names(folder: Path) -> Path:
    """Copy the shipped model with the names of weights that vLLM's own class knows."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(weights_path(), folder, dirs_exist_ok=True)
    file, level = folder / "model.safetensors", "vision_tower."
    weights = load_file(file)
    renamed = {k.replace(level, f"{level}vision_model."): v for k, v in weights.items()}
    save_file(renamed, file, metadata={"format": "pt"})
    return folder


def qwen2_5_vl(folder: Path) -> Path:
    """Write a random Qwen2.5-VL with a byte-level tokenizer.

    Weights are large enough that attention depends on positions; with the usual ones it is uniform
    and every position would do.
    """
    from transformers import (
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = _tokenizer()
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(_config(tokenizer)).float().eval()
    pixels = {"min_pixels": 56 * 56, "max_pixels": 224 * 224}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**pixels),
        video_processor=Qwen2VLVideoProcessor(**pixels),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
        model_max_length=8192,
    )


def _config(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig

    ids = tokenizer.convert_tokens_to_ids
    vision = {
        "depth": 6,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 56,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [2, 5],
        "hidden_act": "silu",
        "initializer_range": 0.15,
    }
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [4, 6, 6],
        },
    }
    return Qwen2_5_VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )


def written(folder: Path) -> dict[str, Any]:
    """Return the config of a checkpoint."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
