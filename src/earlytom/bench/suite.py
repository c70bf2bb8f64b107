"""The five splits of generated clips that methods are compared on.

Questions and answers come from the metadata of what is drawn, never from a model.  ``standard``
takes shots as the world draws them, the others change them: a camera that stands still or shakes,
smaller objects, brief ones.  Every split has a stream of seeds of its own, disjoint from training
and from :func:`earlytom.tiny.evaluate`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earlytom.errors import ConfigError
from earlytom.tiny.clips import draw_pool, render_segments
from earlytom.tiny.composer import compose
from earlytom.tiny.facts import Segment, gather_facts
from earlytom.tiny.questions import ANSWERS, TYPES, Question, QuestionWriter
from earlytom.tiny.world import SHAPES, Shot

_STREAM = 7919  # first word of all held-out seeds; the second tells the splits apart
_TRIES = 4  # clips drawn for every clip taken
_SLACK = 1.25  # how far above its share an answer may be
_SHAKE = 4  # pixels, the most that the renderer's margin allows
_SMALL = 17  # pixels; the world draws 20 to 28
_BRIEF = 16  # of the 64 frames of a shot, so 4 to 16 frames of a clip

Change = Callable[[np.random.Generator, Shot], bool]


@dataclass(frozen=True)
class Split:
    """How the clips of a split are made, and what is asked about them.

    Attributes:
        name: its name.
        summary: what it tests, in a line.
        frames: frames of a clip.
        questions: number of questions unless another is asked for.
        types: question types, all asked equally often.
        per_clip: most questions about one clip.
        shots: fewest and most shots of a clip.
        shortest: fewest frames of a shot.
        noise: standard deviation of the sensor noise in grey levels.
        stream: second word of its seeds.
        change: alters a freshly drawn shot; False if the split cannot use it.
    """

    name: str
    summary: str
    frames: int = 16
    questions: int = 600
    types: tuple[str, ...] = TYPES
    per_clip: int = 12
    shots: tuple[int, int] = (1, 4)
    shortest: int = 3
    noise: float = 6.0
    stream: int = 100
    change: Change = lambda rng, shot: True


@dataclass(frozen=True)
class SuiteClip:
    """One clip of a split: its number, what it shows, and the questions about it."""

    number: int
    segments: list[Segment]
    questions: list[Question]
    noise: float = 6.0

    def render(self) -> NDArray[np.uint8]:
        """Pixels ``[frames, 112, 112, 3]``."""
        return render_segments(self.segments, self.noise)

    def accepted(self, question: Question) -> tuple[str, ...]:
        """Words that answer ``question`` rightly when no candidates are given.

        A shot may show several shapes; all of them answer which shape it shows.
        """
        if question.type != "order":
            return (question.answer,)
        facts = gather_facts(self.segments)
        shot = facts.segments[0 if "first" in question.question.split() else -1]
        return tuple(sorted({SHAPES[seen.shape] for seen in shot}))


def _still(rng: np.random.Generator, shot: Shot) -> bool:
    """Hold the camera still; shots in which something moves are of no use."""
    shot.jitter[:] = 0
    return not any(thing.moving for thing in shot.things)


def _shaken(rng: np.random.Generator, shot: Shot) -> bool:
    """Move the camera anew in every frame; something else must move too."""
    shot.jitter[:] = rng.integers(-_SHAKE, _SHAKE + 1, shot.jitter.shape)
    return any(thing.moving for thing in shot.things)


def _small(rng: np.random.Generator, shot: Shot) -> bool:
    """Shrink all shapes below what the world draws."""
    for thing in shot.things:
        thing.size = _SMALL
    return True


def _brief(rng: np.random.Generator, shot: Shot) -> bool:
    """Show the last shape, if it stands still, for a short while only."""
    last = shot.things[-1]
    if len(shot.things) > 1 and not last.moving and (last.color == last.color[0]).all():
        start = int(rng.integers(shot.frames - _BRIEF + 1))
        last.visible[:] = False
        last.visible[start : start + _BRIEF] = True
    return True


_WITHOUT_MOTION = tuple(t for t in TYPES if t not in ("motion", "after"))
_SPLITS = (
    Split("standard", "all question types, 16 frames", questions=3000),
    Split(
        "long",
        "64 frames, one-frame flashes and objects seen in 4 to 16 of them",
        frames=64,
        questions=480,
        types=("color", "shape", "order", "needle", "digit", "change"),
        shortest=8,
        stream=101,
        change=_brief,
    ),
    Split(
        "static",
        "static camera, nothing moves, one or two shots, little noise",
        types=_WITHOUT_MOTION,
        shots=(1, 2),
        noise=2.0,
        stream=102,
        change=_still,
    ),
    Split(
        "motion",
        "shaking camera, moving objects, four shots of 3 to 7 frames",
        types=tuple(t for t in TYPES if t != "shots"),
        shots=(4, 4),
        stream=103,
        change=_shaken,
    ),
    Split(
        "detail",
        "small shapes, digits, letters, counting",
        types=("color", "shape", "count", "rel", "needle", "digit"),
        stream=104,
        change=_small,
    ),
)
SPLITS: dict[str, Split] = {split.name: split for split in _SPLITS}


def build_split(name: str, seed: int = 1, questions: int | None = None) -> list[SuiteClip]:
    """Draw the clips of a split; they depend on the arguments only.

    Every type gets the same number of questions, and no answer of a type is much more
    frequent than the others.

    Args:
        name: one of ``SPLITS``.
        seed: chooses the clips; no seed ever coincides with training data.
        questions: rounded up to the same number for every type; None for the split's own.

    Raises:
        ConfigError: no such split, a bad number, or too few questions of a type.
    """
    if name not in SPLITS:
        raise ConfigError(f"unknown split {name!r}; there are: {', '.join(SPLITS)}")
    split = SPLITS[name]
    wanted = split.questions if questions is None else questions
    if seed < 0 or wanted < 1:
        raise ConfigError(f"seed must be >= 0 and questions >= 1, got {seed} and {wanted}")
    quota = -(-wanted // len(split.types))
    tally = _Tally(split, quota)
    clips: list[SuiteClip] = []
    for first in range(0, _TRIES * (100 * wanted + 1000), _TRIES):
        if tally.complete:
            return clips
        drawn = [_plan(split, seed, first + i) for i in range(_TRIES)]
        offers = [tally.pick(every) for _, every in drawn]
        best = max(range(_TRIES), key=lambda i: tally.worth(offers[i]))
        if offers[best]:
            tally.add(offers[best])
            clips.append(SuiteClip(len(clips), drawn[best][0], offers[best], split.noise))
    raise ConfigError(f"the clips of split {name!r} give too few questions of {tally.missing}")


class _Tally:
    """Counts the questions taken so far, and picks those that are still wanted."""

    def __init__(self, split: Split, quota: int) -> None:
        self.split = split
        self.quota = quota
        self.most = {k: math.ceil(_SLACK * quota / _possible(split, k)) for k in split.types}
        self.types: Counter[str] = Counter()
        self.answers: Counter[tuple[str, str]] = Counter()

    @property
    def missing(self) -> list[str]:
        """Types of which there are too few."""
        return [kind for kind in self.split.types if self.types[kind] < self.quota]

    @property
    def complete(self) -> bool:
        """Whether there are enough of every type."""
        return not self.missing

    def pick(self, every: Sequence[Question]) -> list[Question]:
        """Questions of one clip that are wanted, those of the scarcest types first."""
        types, answers = self.types.copy(), self.answers.copy()
        chosen: list[Question] = []
        for question in sorted(every, key=lambda q: self.types[q.type]):
            key = (question.type, question.answer)
            wanted = types[question.type] < self.quota and answers[key] < self.most[question.type]
            if wanted and len(chosen) < self.split.per_clip:
                types[question.type] += 1
                answers[key] += 1
                chosen.append(question)
        return chosen

    def worth(self, chosen: Sequence[Question]) -> float:
        """How much a clip brings, by how much is missing of the types of its questions."""
        return sum((self.quota - self.types[q.type]) / self.quota for q in chosen)

    def add(self, chosen: Sequence[Question]) -> None:
        """Take these questions."""
        for question in chosen:
            self.types[question.type] += 1
            self.answers[question.type, question.answer] += 1


def _possible(split: Split, kind: str) -> int:
    """Number of answers that a question type can have in a split."""
    if kind == "shots":
        return split.shots[1] - split.shots[0] + 1
    return len(ANSWERS[kind])


def _plan(split: Split, seed: int, number: int) -> tuple[list[Segment], Sequence[Question]]:
    """Clip ``number`` of a split and all questions about it that the split may ask."""
    rng = np.random.default_rng((_STREAM, split.stream, seed, number))
    pool = draw_pool(rng, split.frames, split.change)
    shots = int(rng.integers(split.shots[0], split.shots[1] + 1))
    limits = (split.shots[1], split.shortest)
    segments = compose(rng, pool, split.frames, shots, limits)
    every = QuestionWriter(rng, segments).write()
    return segments, [q for q in every if q.type in split.types]
