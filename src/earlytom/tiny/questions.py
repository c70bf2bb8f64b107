"""Questions about a clip, derived from the metadata of the frames it shows.

A clip is a list of :class:`Segment` (a shot and which of its frames, in which order).  Every
question has a one-word answer and four candidates.  Because the facts are recomputed from the
chosen frames, any cut of a shot (window, stride, reversed time) has right answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from earlytom.tiny.facts import Segment, Sighting, gather_facts
from earlytom.tiny.world import COLORS, DIRECTIONS, LETTERS, MOMENTS, RELATIONS, SHAPES

TYPES = (
    "color",
    "shape",
    "count",
    "rel",
    "motion",
    "order",
    "after",
    "moment",
    "needle",
    "shots",
    "digit",
    "change",
)
TEMPLATES: dict[str, tuple[str, ...]] = {
    "color": (
        "what color is the {a}?",
        "which color does the {a} have?",
        "the {a} has what color?",
    ),
    "shape": (
        "what shape is the {a} object?",
        "which shape is {a}?",
        "the {a} object has what shape?",
    ),
    "count": (
        "how many objects are in the {a} shot?",
        "how many objects does the {a} shot show?",
    ),
    "rel": (
        "where is the {a} relative to the {b}?",
        "on which side of the {b} is the {a}?",
    ),
    "motion": (
        "which way does the {a} move?",
        "in which direction does the {a} move?",
        "where does the {a} go?",
    ),
    "order": ("which shape is in the {a} shot?", "what shape does the {a} shot show?"),
    "after": ("which shape comes after the {a}?", "what shape is in the shot after the {a}?"),
    "moment": ("when does the {a} appear?", "in which part of the video is the {a}?"),
    "flash": ("when does the letter flash?", "in which part of the video does a letter flash?"),
    "needle": ("which letter flashes?", "what letter is shown for one frame?"),
    "shots": ("how many shots are there?", "how many shots does the video have?"),
    "digit": ("which digit is shown?", "what digit is on the card?"),
    "change": ("what color does the {a} become?", "which color does the {a} change to?"),
}
COUNTS = ("1", "2", "3", "4")
DIGITS = tuple(str(i) for i in range(10))
ANSWERS: dict[str, tuple[str, ...]] = {
    "color": COLORS,
    "shape": SHAPES,
    "count": COUNTS,
    "rel": RELATIONS,
    "motion": DIRECTIONS,
    "order": SHAPES,
    "after": SHAPES,
    "moment": MOMENTS,
    "needle": tuple(name.lower() for name in LETTERS),
    "shots": COUNTS,
    "digit": DIGITS,
    "change": COLORS,
}
TRAVEL = 24.0  # pixels between the first and the last sampled frame for a motion question
_KEEP_EXTREME = 0.38  # share of start/end answers kept for shapes, so that moments balance
AXIS_GAP = 12.0  # pixels by which one axis must dominate for a relation question


@dataclass(frozen=True)
class Question:
    """One question: ``type`` (of :data:`TYPES`), text, one-word answer and four candidates.

    ``about`` lists the shapes that the text names, with the phrase that names them.
    """

    type: str
    question: str
    answer: str
    candidates: tuple[str, ...]
    about: tuple[tuple[str, Sighting], ...] = field(default=(), repr=False, compare=False)


def quarter(time: float, frames: int) -> int | None:
    """Which quarter of the clip a time falls in; ``None`` near a boundary."""
    at = time * 4 / frames
    return int(at) if 0.15 < at - np.floor(at) < 0.85 else None


class QuestionWriter:
    """Writes every question that has one clear answer for a clip."""

    def __init__(self, rng: np.random.Generator, segments: Sequence[Segment]) -> None:
        self.rng = rng
        self.facts = gather_facts(segments)
        self.all = [s for part in self.facts.segments for s in part]
        self.shape_count = Counter(s.shape for s in self.all)
        self.color_count = Counter(c for s in self.all for c in set(s.colors))
        self.pair_count = Counter((c, s.shape) for s in self.all for c in set(s.colors))
        self.seen_colors = [COLORS[c] for c in sorted(self.color_count)]
        self.seen_shapes = [SHAPES[c] for c in sorted(self.shape_count)]
        self.out: list[Question] = []

    def write(self) -> list[Question]:
        """All questions, in a fixed order of types; at most a few per type."""
        for sighting in self.all:
            self._one_object(sighting)
            self._relations(sighting)
        self._whole_shots()
        self._successors()
        self._cards()
        self._add("shots", "shots", COUNTS, str(len(self.facts.segments)))
        return self.out

    def _add(
        self,
        kind: str,
        template: str,
        pool: Sequence[str],
        answer: str,
        *,
        a: str = "",
        b: str = "",
        prefer: Sequence[str] = (),
        avoid: Sequence[str] = (),
        about: tuple[Sighting, ...] = (),
    ) -> None:
        """Append a question; distractors come from ``prefer`` first, never from ``avoid``."""
        banned = {answer, *avoid}
        likely = [str(w) for w in self.rng.permutation([p for p in prefer if p not in banned])]
        rest = [p for p in pool if p not in banned and p not in likely[:3]]
        ranked = dict.fromkeys([*likely, *(str(w) for w in self.rng.permutation(rest))])
        others = list(ranked)[:3]
        if len(others) < 3:
            return
        order = self.rng.permutation(4)
        candidates = tuple([answer, *others][i] for i in order)
        text = str(self.rng.choice(TEMPLATES[template])).format(a=a, b=b)
        names = tuple(zip((a, b), about, strict=False))
        self.out.append(Question(kind, text, answer, candidates, names))

    def _name(self, s: Sighting) -> str | None:
        """The shortest phrase that names a sighting uniquely in the clip, if there is one."""
        if self.shape_count[s.shape] == 1:
            return SHAPES[s.shape]
        if s.steady and self.pair_count[(s.colors[0], s.shape)] == 1:
            return f"{COLORS[s.colors[0]]} {SHAPES[s.shape]}"
        return None

    def _one_object(self, s: Sighting) -> None:
        """Colour, shape, motion, colour change and moment of one sighting."""
        color, shape = COLORS[s.colors[0]], SHAPES[s.shape]
        unique = self.shape_count[s.shape] == 1
        about = (s,)
        if unique and s.steady:
            self._add(
                "color", "color", COLORS, color, a=shape, prefer=self.seen_colors, about=about
            )
        if s.steady and self.color_count[s.colors[0]] == 1:
            seen = self.seen_shapes
            self._add("shape", "shape", SHAPES, shape, a=color, prefer=seen, about=about)
        name = self._name(s)
        if name and s.moving and np.abs(s.travel).max() >= TRAVEL:
            way = DIRECTIONS[_direction(s.travel)]
            self._add("motion", "motion", DIRECTIONS, way, a=name, about=about)
        if unique and not s.steady:
            final, prefer = COLORS[s.colors[-1]], [color, *self.seen_colors]
            self._add("change", "change", COLORS, final, a=shape, prefer=prefer, about=about)
        if unique and len(s.times) <= self.facts.frames // 2:
            part = quarter(float(s.times.mean()) + 0.5, self.facts.frames)
            thinned = part in (0, 3) and self.rng.random() > _KEEP_EXTREME
            if part is not None and not thinned:
                self._add("moment", "moment", MOMENTS, MOMENTS[part], a=shape, about=about)

    def _relations(self, s: Sighting) -> None:
        """Where a static sighting is relative to the other static ones of its shot."""
        name = self._name(s)
        if s.moving or name is None:
            return
        for other in self.facts.segments[s.segment]:
            other_name = self._name(other)
            if other is s or other.moving or other_name is None:
                continue
            gap = s.xy[0] - other.xy[0]
            if abs(abs(gap[0]) - abs(gap[1])) > AXIS_GAP:
                side = RELATIONS[_direction(gap)]
                self._add("rel", "rel", RELATIONS, side, a=name, b=other_name, about=(s, other))

    def _whole_shots(self) -> None:
        """Number of objects and shapes of the first and the last shot."""
        parts = self.facts.segments
        for word, seen in (("first", parts[0]), ("last", parts[-1])):
            if seen and all(len(s.times) >= 2 for s in seen):
                self._add("count", "count", COUNTS, str(len(seen)), a=word)
            if seen and len(parts) > 1:
                here = sorted({SHAPES[s.shape] for s in seen})
                answer = str(self.rng.choice(here))
                elsewhere = [s for s in self.seen_shapes if s not in here]
                self._add("order", "order", SHAPES, answer, a=word, prefer=elsewhere, avoid=here)

    def _successors(self) -> None:
        """The only shape of the shot after a unique shape."""
        for seen, following in zip(self.facts.segments, self.facts.segments[1:], strict=False):
            if len(following) != 1:
                continue
            answer = SHAPES[following[0].shape]
            for s in seen:
                if self.shape_count[s.shape] == 1:
                    avoid, name = [SHAPES[s.shape]], SHAPES[s.shape]
                    here = [w for w in self.seen_shapes if w != name]
                    self._add(
                        "after",
                        "after",
                        SHAPES,
                        answer,
                        a=name,
                        prefer=here,
                        avoid=avoid,
                        about=(s,),
                    )

    def _cards(self) -> None:
        """The flashed letter, when it flashes, and the digit, where there is only one."""
        if len(self.facts.letters) == 1:
            letter, time = self.facts.letters[0]
            names = ANSWERS["needle"]
            self._add("needle", "needle", names, names[letter])
            part = quarter(time + 0.5, self.facts.frames)
            if part is not None:
                self._add("moment", "flash", MOMENTS, MOMENTS[part])
        if len(self.facts.digits) == 1:
            self._add("digit", "digit", DIGITS, DIGITS[self.facts.digits[0]])


def _direction(vector: NDArray[np.float64]) -> int:
    """Dominant direction: 0 left, 1 right, 2 up/above, 3 down/below (y grows downwards)."""
    if abs(vector[0]) > abs(vector[1]):
        return 0 if vector[0] < 0 else 1
    return 2 if vector[1] < 0 else 3
