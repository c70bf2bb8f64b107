"""Prompts -> token ids, with many placeholders per video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def tokenise(
    tokenizer: Any, prompts: list[str], placeholder: str, count: int, options: dict[str, Any]
) -> dict[str, Tensor]:
    """Tokenise ``prompts`` as if every ``placeholder`` stood there ``count`` times.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompts: texts with one placeholder per video.
        placeholder: text of the placeholder token.
        count: how often it is repeated; 0 removes it.
        options: of the tokenizer's call: left padding and ``add_special_tokens``.

    Returns:
        ``input_ids`` and ``attention_mask``, ``[B, L]`` int64, padded on the left.
    """
    place = _placeholder_id(tokenizer, placeholder)
    if place is None or count == 0:
        texts = [p.replace(placeholder, placeholder * count) for p in prompts]
        out = dict(tokenizer(texts, return_tensors="pt", **options))
        return {k: out[k] for k in ("input_ids", "attention_mask")}
    found = tokenizer(prompts, add_special_tokens=options["add_special_tokens"])["input_ids"]
    rows = [torch.tensor(ids, dtype=torch.int64) for ids in found]
    rows = [r.repeat_interleave(torch.where(r == place, count, 1)) for r in rows]
    length = max(len(r) for r in rows)
    ids = torch.full((len(rows), length), int(tokenizer.pad_token_id))
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _placeholder_id(tokenizer: Any, placeholder: str) -> int | None:
    """Return the id of the placeholder if repeating the id equals repeating the text, or None.

    So it is for added tokens that are cut out of the text as they stand. Tokenising thousands of
    them takes longer than tokenising the question.
    """
    if tokenizer.pad_token_id is None:
        return None
    for token_id, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if str(token) == placeholder:
            altered = token.lstrip or token.rstrip or token.single_word or token.normalized
            return None if altered else int(token_id)
    return None
