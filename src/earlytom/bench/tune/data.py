"""Clips to search on and clips to check the winner on; they never share a shot."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from earlytom.bench.suite import SuiteClip, build_split
from earlytom.errors import ConfigError

# far apart, because the clips of one seed are numbered on towards the next
FIRST_TUNING_SEED = 1_000_000
"""Clips of a search have seeds from here on."""
LAST_HELD_OUT_SEED = 499_999
"""Clips of a check and of the benchmark have seeds up to here."""


@dataclass(frozen=True)
class Sample:
    """Clips, numbered in order, and the split of each."""

    clips: list[SuiteClip]
    splits: list[str]

    def ordered(self, order: Sequence[int]) -> Sample:
        """Return the clips in another order, numbered anew."""
        clips = [dataclasses.replace(self.clips[i], number=n) for n, i in enumerate(order)]
        return Sample(clips, [self.splits[i] for i in order])


def tuning_clips(splits: Sequence[str], seed: int, questions: int) -> Sample:
    """Draw clips to search on, in an order in which every beginning is a fair sample.

    Args:
        splits: names of splits.
        seed: 0 or more; the clips are those of seed ``FIRST_TUNING_SEED + seed``.
        questions: of every split.

    Raises:
        ConfigError: no such split, or a bad number.
    """
    if seed < 0:
        raise ConfigError(f"the seed of a search must be >= 0, got {seed}")
    sample = _draw(splits, FIRST_TUNING_SEED + seed, questions)
    n = len(sample.clips)
    # the builder looks for scarce questions last, so its own order is no fair sample
    return sample.ordered(np.random.default_rng((seed, n)).permutation(n).tolist())


def held_out_clips(splits: Sequence[str], seed: int, questions: int) -> Sample:
    """Draw clips for the check, those of the benchmark for the same split, seed and number.

    Raises:
        ConfigError: a seed that is set apart for searches, no such split, or a bad number.
    """
    if not 0 <= seed <= LAST_HELD_OUT_SEED:
        raise ConfigError(
            f"the seed of held-out clips must be in 0..{LAST_HELD_OUT_SEED} (others are set apart "
            f"for searches), got {seed}"
        )
    return _draw(splits, seed, questions)


def check_disjoint(tuning: Iterable[SuiteClip], held_out: Iterable[SuiteClip]) -> None:
    """Raise ConfigError if a clip of one side shows a shot of the other."""
    shared = _shots(tuning) & _shots(held_out)
    if shared:
        raise ConfigError(
            f"{len(shared)} shots are in the clips to search on and in the held-out clips; "
            "use other seeds"
        )


def _draw(splits: Sequence[str], seed: int, questions: int) -> Sample:
    if not splits or len(set(splits)) != len(splits):
        raise ConfigError(f"give one or more different splits, got {list(splits)}")
    drawn = [(name, clip) for name in splits for clip in build_split(name, seed, questions)]
    sample = Sample([clip for _, clip in drawn], [name for name, _ in drawn])
    return sample.ordered(range(len(drawn)))


def _shots(clips: Iterable[SuiteClip]) -> set[tuple[bytes, int]]:
    """Background colour (continuous) and noise seed tell shots apart."""
    shots = (segment.shot for clip in clips for segment in clip.segments)
    return {(np.asarray(shot.base).tobytes(), shot.seed) for shot in shots}
