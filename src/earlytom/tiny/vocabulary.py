"""The word list of the tiny model and its prompt layout.

The words are exactly those that questions and answers use; the order is fixed because token ids
are part of the shipped weights.
"""

from __future__ import annotations

import re
from functools import lru_cache

from earlytom.tiny.questions import COUNTS, DIGITS, TEMPLATES
from earlytom.tiny.world import COLORS, DIRECTIONS, LETTERS, MOMENTS, RELATIONS, SHAPES

PAD, UNKNOWN, EOS = "<pad>", "<unk>", "<eos>"
USER, ASSISTANT, IMAGE, VIDEO = "<user>", "<assistant>", "<image>", "<video>"
SPECIAL = (PAD, UNKNOWN, EOS, USER, ASSISTANT, IMAGE, VIDEO)
PAD_ID, UNKNOWN_ID, EOS_ID, USER_ID, ASSISTANT_ID, IMAGE_ID, VIDEO_ID = range(7)

_VOCABULARY_ROWS = 128  # rounded up for fast matrix products; spare rows are never used


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """All tokens in id order: the special ones, the answers, then the question words."""
    answers = (*COLORS, *SHAPES, *DIGITS, *LETTERS, *DIRECTIONS, *RELATIONS, *MOMENTS, *COUNTS)
    plain = " ".join(t for kind in sorted(TEMPLATES) for t in TEMPLATES[kind])
    asked = [*split_words(re.sub(r"{\w}", " ", plain)), "first", "last", "letter"]
    ordered = dict.fromkeys([*SPECIAL, *(a.lower() for a in answers), *asked])
    return tuple(ordered)


@lru_cache(maxsize=1)
def word_ids() -> dict[str, int]:
    """Token to id."""
    return {word: i for i, word in enumerate(words())}


def vocabulary_size() -> int:
    """Rows of the embedding matrix."""
    if len(words()) > _VOCABULARY_ROWS:
        raise AssertionError(f"{len(words())} words do not fit {_VOCABULARY_ROWS} rows")
    return _VOCABULARY_ROWS


def split_words(text: str) -> list[str]:
    """Lower-case words and single punctuation marks, as the tokenizer splits them."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def encode(text: str) -> list[int]:
    """Ids of a plain text (no special tokens); unknown words become ``<unk>``."""
    ids = word_ids()
    return [ids.get(word, UNKNOWN_ID) for word in split_words(text)]
