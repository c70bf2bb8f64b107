"""Held-out clips with balanced questions, and a guesser that sees the questions only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from earlytom.errors import ConfigError
from earlytom.tiny.clips import plan_clip
from earlytom.tiny.composer import ShotPool, compose
from earlytom.tiny.facts import Segment
from earlytom.tiny.questions import ANSWERS, TYPES, Question, QuestionWriter
from earlytom.tiny.world import SHOT_FRAMES, make_shot

_SEED_STEP = 1_000_003
_BLIND_CLIPS = 3000
_BLIND_SHOTS = 2000
_BLIND_SEED = 999_000_000


@dataclass
class PlannedClip:
    """A clip of the evaluation set and the questions chosen for it."""

    segments: list[Segment]
    questions: list[Question]


def evaluation_set(questions: int, seed: int, frames: int = 16) -> list[PlannedClip]:
    """Clips with at least ``questions`` questions, the same number (rounded up) of every type.

    From 16 frames on, where every answer is possible, the answers of a type are balanced too.
    """
    if questions < 1:
        raise ConfigError(f"questions must be at least 1, got {questions}")
    quota = -(-questions // len(TYPES))
    per_answer = {kind: -(-quota // len(pool)) for kind, pool in ANSWERS.items()}
    types: Counter[str] = Counter()
    answers: Counter[tuple[str, str]] = Counter()
    plans: list[PlannedClip] = []
    number = 0
    while sum(types.values()) < quota * len(TYPES):
        segments, every = plan_clip(seed * _SEED_STEP + number, frames)
        number += 1
        chosen = []
        for question in every:
            kind, key = question.type, (question.type, question.answer)
            full = frames >= 16 and answers[key] >= per_answer[kind]
            if types[kind] < quota and not full:
                types[kind] += 1
                answers[key] += 1
                chosen.append(question)
        if chosen:
            plans.append(PlannedClip(segments, chosen))
        if number > 200 * questions + 2000:
            missing = [t for t in TYPES if types[t] < quota]
            raise ConfigError(f"clips of {frames} frames give too few questions of {missing}")
    return plans


class BlindGuesser:
    """Answers from the question text alone, with answer frequencies of other clips."""

    def __init__(self, frames: int, clips: int = _BLIND_CLIPS, shots: int = _BLIND_SHOTS) -> None:
        self.by_text: dict[str, Counter[str]] = {}
        self.by_type: dict[str, Counter[str]] = {}
        rng = np.random.default_rng(_BLIND_SEED)
        length = max(SHOT_FRAMES, frames)
        pool = ShotPool([make_shot(rng, length) for _ in range(shots)])
        for _ in range(clips):
            for question in QuestionWriter(rng, compose(rng, pool, frames)).write():
                for table, key in (
                    (self.by_text, question.question),
                    (self.by_type, question.type),
                ):
                    table.setdefault(key, Counter())[question.answer] += 1

    def answer(self, question: Question) -> str:
        """The most frequent candidate for this text, then for this type."""
        text = self.by_text.get(question.question, Counter())
        kind = self.by_type.get(question.type, Counter())
        return max(question.candidates, key=lambda c: (text[c], kind[c]))


@lru_cache(maxsize=4)
def _blind_guesser(frames: int) -> BlindGuesser:
    return BlindGuesser(frames)


def blind_accuracy(plans: Iterable[PlannedClip], frames: int) -> dict[str, float]:
    """Accuracy by type of :class:`BlindGuesser` on the questions of ``plans``."""
    guesser = _blind_guesser(frames)
    hits: dict[str, list[bool]] = {t: [] for t in TYPES}
    for plan in plans:
        for question in plan.questions:
            hits[question.type].append(guesser.answer(question) == question.answer)
    return {t: sum(v) / max(1, len(v)) for t, v in hits.items()}
