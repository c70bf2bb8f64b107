"""A random LLaVA-OneVision checkpoint with a word-level tokenizer, as files on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = ["what", "which", "colour", "shape", "moves", "first", "last", "is", "the"]
WORDS += ["red", "blue", "circle", "square", "left", "right"]
SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
SIDE, PATCH = 28, 7  # 16 patches, 4 tokens per frame
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} "
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'video' %}<video> {% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    " <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)


def build(folder: Path, seed: int = 0) -> Path:
    """Write model, tokenizer, chat template and processor settings; return ``folder``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        PreTrainedTokenizerFast,
    )

    vocab = {w: i for i, w in enumerate([*SPECIAL, "user", "assistant", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "vocab_size": len(vocab),
            "max_position_embeddings": 2048,
            "pad_token_id": vocab["<pad>"],
            "bos_token_id": vocab["<|im_start|>"],
            "eos_token_id": vocab["<|im_end|>"],
        },
        image_token_index=vocab["<image>"],
        video_token_index=vocab["<video>"],
        image_grid_pinpoints=[[SIDE, SIDE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    with torch.no_grad():  # never say <video>, <image> or the end: answers have a known length
        for name, p in model.named_parameters():
            if p.dim() > 1 and "embed" not in name:
                p.copy_(torch.randn_like(p) * 0.6 / p.shape[-1] ** 0.5)
    model.generation_config.suppress_tokens = [vocab[s] for s in SPECIAL]
    model.save_pretrained(folder)
    frames = {"size": {"height": SIDE, "width": SIDE}, "resample": 3, "rescale_factor": 1 / 255}
    frames |= {"do_resize": True, "do_rescale": True, "do_normalize": True}
    frames |= {"image_mean": MEAN, "image_std": STD}
    files = {
        "video_preprocessor_config.json": {
            **frames, "video_processor_type": "LlavaOnevisionVideoProcessor"},
        "preprocessor_config.json": {
            **frames, "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_grid_pinpoints": [[SIDE, SIDE]]},
        "processor_config.json": {
            "processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16,
            "vision_feature_select_strategy": "full", "image_token": "<image>",
            "video_token": "<video>"},
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder
