"""Tokenizer, chat template and processor files that ship beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from earlytom.tiny.architecture import Architecture
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


def chat_template(arch: Architecture) -> str:
    """Jinja text: images and videos of a message come first, then its text."""
    before, behind = (arch.extra_tokens.get(f"vision_{end}_token", "") for end in ("start", "end"))

    def parts(kind: str, token: str) -> str:
        text = " ".join(t for t in (before, token, behind) if t)
        return (
            f"{{%- for part in message['content'] if part['type'] == '{kind}' -%}}"
            f"{{{{ ' {text}' }}}}{{%- endfor -%}}"
        )

    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'assistant' -%}"
        + ASSISTANT
        + "{%- else -%}"
        + USER
        + "{%- endif -%}"
        "{%- if message['content'] is string -%}"
        "{{ ' ' + message['content'] }}"
        "{%- else -%}"
        + parts("image", IMAGE)
        + parts("video", VIDEO)
        + "{%- for part in message['content'] if part['type'] == 'text' -%}"
        "{{ ' ' + part['text'] }}"
        "{%- endfor -%}"
        "{%- endif -%}"
        "{%- if message['role'] == 'assistant' -%}{{ ' "
        + EOS
        + "' }}{%- else -%}{{ ' ' }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}" + ASSISTANT + "{%- endif -%}"
    )


def build_tokenizer(arch: Architecture) -> Any:
    """A word-level ``PreTrainedTokenizerFast``: lower-case words and single punctuation marks."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    ids = dict(word_ids())
    ids |= {token: len(ids) + i for i, token in enumerate(arch.extra_tokens.values())}
    core = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
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
            **arch.extra_tokens,
        },
        chat_template=chat_template(arch),
        padding_side="left",
        model_max_length=4096,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def generation_config() -> Any:
    """Greedy decoding that stops after the answer word."""
    from transformers import GenerationConfig

    return GenerationConfig(
        do_sample=False, eos_token_id=EOS_ID, pad_token_id=PAD_ID, max_new_tokens=8
    )


def save_assets(folder: Path, arch: Architecture) -> None:
    """Write tokenizer, chat template and processor files into ``folder``."""
    build_tokenizer(arch).save_pretrained(folder)
    for name, data in arch.processor_files().items():
        (folder / name).write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
