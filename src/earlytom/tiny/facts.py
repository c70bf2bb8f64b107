"""What a clip shows: segments of shots, and the sightings of every shape in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from earlytom.tiny.world import Shot


@dataclass(frozen=True)
class Segment:
    """A run of frames of one shot: ``index`` names the shot in its pool, ``frames [n]``."""

    index: int
    shot: Shot
    frames: NDArray[np.int64]


@dataclass(eq=False)
class Sighting:
    """One shape as seen in one segment; ``times`` are clip frame numbers where it is visible."""

    segment: int
    shape: int
    colors: list[int]  # per visible frame
    times: NDArray[np.int64]
    xy: NDArray[np.float64]  # [visible frames, 2]
    moving: bool

    @property
    def travel(self) -> NDArray[np.float64]:
        """Displacement ``[2]`` in pixels from the first to the last visible frame."""
        return self.xy[-1] - self.xy[0]

    @property
    def steady(self) -> bool:
        """Whether the colour never changes."""
        return len(set(self.colors)) == 1


@dataclass
class Facts:
    """What a clip shows: sightings per segment, cards, and its length in frames."""

    segments: list[list[Sighting]]
    digits: list[int]
    letters: list[tuple[int, int]]  # (letter, clip frame)
    frames: int


def gather_facts(segments: Sequence[Segment]) -> Facts:
    """Collect what is visible in the chosen frames."""
    facts = Facts([], [], [], 0)
    for number, part in enumerate(segments):
        seen = []
        for thing in part.shot.things:
            rows = np.flatnonzero(thing.visible[part.frames])
            if len(rows):
                at = part.frames[rows]
                colors = [int(c) for c in thing.color[at]]
                times = rows + facts.frames
                seen.append(
                    Sighting(number, thing.shape, colors, times, thing.xy[at], thing.moving)
                )
        facts.segments.append(seen)
        if part.shot.digit is not None:
            facts.digits.append(part.shot.digit.value)
        letter = part.shot.letter
        if letter is not None and letter.visible[part.frames].any():
            when = int(np.argmax(letter.visible[part.frames]))
            facts.letters.append((letter.value, facts.frames + when))
        facts.frames += len(part.frames)
    return facts
