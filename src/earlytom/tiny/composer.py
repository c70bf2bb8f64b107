"""Cutting shots into clips: which shots, which of their frames, in which order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from earlytom.errors import ConfigError
from earlytom.tiny.facts import Segment
from earlytom.tiny.questions import Question
from earlytom.tiny.world import Shot

FRAME_COUNTS = (4, 8, 16, 32)
_BASE_GAP = 45.0  # RGB distance between the backgrounds of a clip
_TRIES = 14


def shot_limits(frames: int) -> tuple[int, int]:
    """Largest number of shots and shortest shot for a clip of ``frames`` frames."""
    if frames not in FRAME_COUNTS:
        raise ConfigError(f"a clip has one of {FRAME_COUNTS} frames, got {frames}")
    return {4: (2, 2), 8: (3, 2), 16: (4, 3), 32: (4, 4)}[frames]


class ShotPool:
    """Shots sorted by their number of shapes, for balanced drawing."""

    def __init__(self, shots: Sequence[Shot]) -> None:
        self.shots = shots
        counts = np.array([len(s.things) for s in shots])
        self.by_count = {n: np.flatnonzero(counts == n) for n in range(1, 5)}
        missing = [n for n, found in self.by_count.items() if not len(found)]
        if missing:
            raise ConfigError(f"the shot pool has no shot with {missing} shapes; make it larger")


def _lengths(
    rng: np.random.Generator, frames: int, shots: int, shortest: int, longest: int
) -> NDArray[np.int64]:
    """Random shot lengths that add up to ``frames``."""
    while True:
        cuts = np.sort(rng.integers(0, frames - shots * shortest + 1, shots - 1))
        edges = np.concatenate([[0], cuts, [frames - shots * shortest]])
        lengths = np.diff(edges) + shortest
        if lengths.max() <= longest:
            return lengths


def compose(
    rng: np.random.Generator,
    pool: ShotPool,
    frames: int,
    shots: int | None = None,
    limits: tuple[int, int] | None = None,
) -> list[Segment]:
    """Draw a clip of ``frames`` frames from the pool, uniform over the possible shot numbers.

    Prefers shots whose shapes, cards and background colours do not repeat within the clip.
    ``limits`` replaces :func:`shot_limits`, for clips of other lengths than the model learns from.
    """
    most, shortest = shot_limits(frames) if limits is None else limits
    available = pool.shots[0].frames
    least = -(-frames // available)
    if shots is None:
        shots = int(rng.integers(least, most + 1))
    elif not least <= shots <= most:
        raise ConfigError(f"a clip of {frames} frames has {least} to {most} shots, got {shots}")
    segments: list[Segment] = []
    for number, length in enumerate(_lengths(rng, frames, shots, shortest, available)):
        # No question counts the middle shots; single shapes there make more 'after' questions.
        single = 0 < number < shots - 1 and rng.random() < 0.5
        things = 1 if single else int(rng.integers(1, 5))
        candidates = rng.choice(pool.by_count[things], _TRIES)
        noise = rng.random(_TRIES)
        costs = [
            _repetition(pool.shots[i], segments) + 0.5 * x
            for i, x in zip(candidates, noise, strict=True)
        ]
        index = int(candidates[int(np.argmin(costs))])
        shot = pool.shots[index]
        taken = any(_shows_letter(s) for s in segments)
        segments.append(Segment(index, shot, _choose_frames(rng, shot, int(length), taken)))
    return segments


def _shows_letter(segment: Segment) -> bool:
    """Whether the flashed letter is among the chosen frames."""
    letter = segment.shot.letter
    return letter is not None and bool(letter.visible[segment.frames].any())


def _repetition(shot: Shot, segments: list[Segment]) -> float:
    """How much adding a shot would repeat what the clip already shows; lower is better."""
    cost = 0.0
    changes = any((t.color != t.color[0]).any() for t in shot.things)
    changed = False
    for part in segments:
        cost += len(part.shot.shapes & shot.shapes)
        cost += 3.0 * (part.shot.digit is not None and shot.digit is not None)
        cost += 1.0 * (_shows_letter(part) and shot.letter is not None)
        distance = float(np.linalg.norm(part.shot.base - shot.base))
        cost += 20.0 * max(0.0, 1 - distance / _BASE_GAP)
        changed |= any((t.color != t.color[0]).any() for t in part.shot.things)
    return cost - 0.6 * (changes and not changed)


def _choose_frames(
    rng: np.random.Generator, shot: Shot, length: int, letter_taken: bool
) -> NDArray[np.int64]:
    """A window of ``length`` frames with a constant stride, in either direction of time."""
    widest = max(1, (shot.frames - 1) // max(1, length - 1))
    stride = widest if rng.random() < 0.65 else int(rng.integers(1, widest + 1))
    starts = np.arange(shot.frames - stride * (length - 1))
    if shot.letter is not None and not letter_taken and rng.random() < 0.85:
        flash = int(np.argmax(shot.letter.visible))
        steps = flash - starts
        hits = starts[(steps >= 0) & (steps % stride == 0) & (steps < stride * length)]
        starts = hits if len(hits) else starts
    frames = int(rng.choice(starts)) + stride * np.arange(length)
    return frames[::-1].copy() if rng.random() < 0.5 else frames


def pick_questions(
    rng: np.random.Generator, questions: Sequence[Question], count: int
) -> list[Question]:
    """Up to ``count`` questions, as evenly spread over the types as they allow."""
    by_type: dict[str, list[Question]] = {}
    for index in rng.permutation(len(questions)):
        by_type.setdefault(questions[index].type, []).append(questions[index])
    chosen: list[Question] = []
    depth = 0
    while len(chosen) < count and any(len(v) > depth for v in by_type.values()):
        for kind in rng.permutation(sorted(by_type)):
            if len(by_type[kind]) > depth and len(chosen) < count:
                chosen.append(by_type[kind][depth])
        depth += 1
    return chosen
