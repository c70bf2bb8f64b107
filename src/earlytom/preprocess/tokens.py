"""Prompts -> token ids, with many placeholders per video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def tokenise(
    tokenizer: Any,
    prompts: list[str],
    placeholder: str,
    counts: Sequence[int],
    options: dict[str, Any],
) -> dict[str, Tensor]:
    """Tokenise ``prompts`` as if their placeholders stood there as often as ``counts`` says.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompts: texts with placeholders.
        placeholder: text of the placeholder token.
        counts: how often each is repeated, in the order of the texts; 0 removes it.
        options: of the tokenizer's call: left padding and ``add_special_tokens``.

    Returns:
        ``input_ids`` and ``attention_mask``, ``[B, L]`` int64, padded on the left.
    """
    place = _placeholder_id(tokenizer, placeholder)
    if place is None or 0 in counts:
        left = iter(counts)
        cut = [p.split(placeholder) for p in prompts]
        texts = ["".join([c[0], *(placeholder * next(left) + part for part in c[1:])]) for c in cut]
        out = dict(tokenizer(texts, return_tensors="pt", **options))
        return {k: out[k] for k in ("input_ids", "attention_mask")}
    found = tokenizer(prompts, add_special_tokens=options["add_special_tokens"])["input_ids"]
    rows = [torch.tensor(ids, dtype=torch.int64) for ids in found]
    repeats = torch.ones(sum(len(r) for r in rows), dtype=torch.int64)
    repeats[torch.cat(rows) == place] = torch.tensor(counts, dtype=torch.int64)
    each = repeats.split([len(r) for r in rows])
    rows = [r.repeat_interleave(n) for r, n in zip(rows, each, strict=True)]
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
