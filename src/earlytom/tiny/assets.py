"""Tokenizer, chat template and processor files that ship beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from earlytom.tiny.architecture import PATCH, PIXEL_MEAN, PIXEL_STD
from earlytom.tiny.vocabulary import (
    ASSISTANT,
    EOS,
    EOS_ID,
    IMAGE,
    PAD,
    PAD_ID,
    UNKNOWN,
    USER,
    VIDEO,
    word_ids,
)
from earlytom.tiny.world import IMAGE_SIZE

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    + ASSISTANT
    + "{%- else -%}"
    + USER
    + "{%- endif -%}"
    "{%- if message['content'] is string -%}"
    "{{ ' ' + message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{ ' "
    + IMAGE
    + "' }}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'video' -%}{{ ' "
    + VIDEO
    + "' }}{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}"
    "{{ ' ' + part['text'] }}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{ ' "
    + EOS
    + "' }}{%- else -%}{{ ' ' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}" + ASSISTANT + "{%- endif -%}"
)


def build_tokenizer() -> Any:
    """A word-level ``PreTrainedTokenizerFast``: lower-case words and single punctuation marks."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(WordLevel(word_ids(), unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=EOS,
        extra_special_tokens={
            "image_token": IMAGE,
            "video_token": VIDEO,
            "user_token": USER,
            "assistant_token": ASSISTANT,
        },
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=4096,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def processor_files() -> dict[str, dict[str, Any]]:
    """Contents of the processor JSON files, by file name.

    Written by hand because the processor classes need torchvision, which this package does not.
    """
    pixels: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [PIXEL_MEAN] * 3,
        "image_std": [PIXEL_STD] * 3,
        "processor_class": "LlavaOnevisionProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    }
    return {
        "preprocessor_config.json": {
            **pixels,
            "do_pad": True,
            "image_grid_pinpoints": [[IMAGE_SIZE, IMAGE_SIZE]],
            "image_processor_type": "LlavaOnevisionImageProcessor",
        },
        "video_preprocessor_config.json": {
            **pixels,
            "do_sample_frames": False,
            "video_processor_type": "LlavaOnevisionVideoProcessor",
        },
        "processor_config.json": {
            "image_token": IMAGE,
            "num_image_tokens": (IMAGE_SIZE // PATCH) ** 2,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": VIDEO,
            "vision_aspect_ratio": "anyres_max_9",
            "vision_feature_select_strategy": "full",
        },
    }


def generation_config() -> Any:
    """Greedy decoding that stops after the answer word."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False, eos_token_id=EOS_ID, pad_token_id=PAD_ID, max_new_tokens=8
    )


def save_assets(folder: Path) -> None:
    """Write tokenizer, chat template and processor files into ``folder``."""
    build_tokenizer().save_pretrained(folder)
    for name, data in processor_files().items():
        (folder / name).write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
