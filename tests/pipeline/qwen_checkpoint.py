"""Random Qwen-VL checkpoints with a tokenizer of single characters, as files on disk."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

from tests.families import BOS, EOS, IMAGE, PAD, VIDEO, build
from tests.qwen import CONFIG, END, START

SPECIAL = {
    "<pad>": PAD,
    "<|im_start|>": BOS,
    "<|im_end|>": EOS,
    "<|image_pad|>": IMAGE,
    "<|video_pad|>": VIDEO,
    "<|vision_start|>": START,
    "<|vision_end|>": END,
}
CHARACTERS = string.ascii_lowercase + string.digits + " <>.?\n"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZE = {"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 12}
CLASSES = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
}


def processor_settings(kind: str) -> dict[str, Any]:
    """What ``video_preprocessor_config.json`` holds; limits of Qwen3-VL count all frames."""
    size = {k: 16 * v for k, v in SIZE.items()} if kind == "qwen3_vl" else SIZE
    return {"size": size, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}


def build_qwen(folder: Path, kind: str) -> Path:
    """Write model, tokenizer, chat template and processor settings; return ``folder``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = SPECIAL | {c: i for i, c in enumerate(CHARACTERS, 2)} | {"<unk>": 100}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=[t for t in SPECIAL if t.startswith("<|")],
    )
    tokenizer.save_pretrained(folder)
    model: Any = build(CONFIG[kind](), torch.float32, "sdpa")
    model.generation_config.suppress_tokens = list(SPECIAL.values())
    model.save_pretrained(folder)
    processor, video = CLASSES[kind]
    settings = processor_settings(kind)
    files = {
        "video_preprocessor_config.json": {**settings, "video_processor_type": video},
        "preprocessor_config.json": {**settings, "image_processor_type": "Qwen2VLImageProcessor"},
        "processor_config.json": {"processor_class": processor},
    }
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder
