"""Batches of the language stage: clips with several questions each, and all their targets.

Beside the answers, a batch has auxiliary targets for two sets of throw-away linear heads: what
every *video* token should know given the frames so far (:func:`video_targets`), and what the
token that names an object in a *question* should know about it (:func:`named_targets`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from earlytom.tiny.bank import Scenery, ShotSet, load_scenery
from earlytom.tiny.composer import compose, pick_questions
from earlytom.tiny.config import Phase
from earlytom.tiny.facts import Segment, Sighting
from earlytom.tiny.questions import Question, QuestionWriter
from earlytom.tiny.render import render
from earlytom.tiny.vocabulary import ASSISTANT_ID, EOS_ID, encode
from earlytom.tiny.world import CELLS, IMAGE_SIZE, SHAPES

QUESTION_TOKENS = 14  # longest question (12) + <assistant> + answer
IGNORE = -100
_MOVED = 6.0  # pixels of travel after which a cell counts as moving
_SCALE = 28.0  # pixels per unit of the regression targets
Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass
class PackedBatch:
    """``B`` clips with up to ``Q`` questions of at most ``L`` tokens.

    ``shot``/``frame`` ``[B, T]`` address the bank; ``ids [B, Q, L]`` are question tokens,
    ``<assistant>`` and the answer; ``target [B, Q, L]`` is the next token at the last two of
    them and -100 elsewhere; ``weight [B, Q]`` weighs the answers (0 = no question); ``kind``
    and ``choices`` list ``(clip, question, type, candidate ids, index of the right one)``.
    ``video`` holds ``[B, T, 49, ...]`` targets and ``named`` ``[M, ...]`` targets of the tokens at
    ``named_at [M, 3]`` (clip, question, token).  ``pixels [B, T, H, W, 3]`` are there where no bank
    is, and ``interval`` is the number of time positions per step, None for the usual.
    """

    shot: Ints
    frame: Ints
    ids: Ints
    target: Ints
    weight: Floats
    choices: list[tuple[int, int, str, list[int], int]]
    video: dict[str, NDArray]
    named: dict[str, NDArray]
    named_at: Ints
    pixels: NDArray[np.uint8] | None = None
    interval: float | None = None


def video_targets(
    segments: Sequence[Segment], items: Sequence[NDArray[np.int8]]
) -> dict[str, NDArray]:
    """Targets ``[T, 49, ...]`` of the video tokens; causal: nothing depends on later frames.

    ``items`` has what each cell shows, ``[n, 49]`` for the frames of every segment.
    """
    total = sum(len(s.frames) for s in segments)
    out: dict[str, NDArray] = {
        "cut": np.zeros((total, CELLS), np.int64),
        "segment": np.zeros((total, CELLS), np.int64),
        "objects": np.zeros((total, CELLS), np.int64),
        "shape": np.zeros((total, CELLS), np.int64),
        "color": np.zeros((total, CELLS), np.int64),
        "first_color": np.zeros((total, CELLS), np.int64),
        "motion": np.full((total, CELLS), IGNORE, np.int64),
        "travel": np.zeros((total, CELLS, 2), np.float32),
        "place": np.zeros((total, CELLS, 2), np.float32),
        "time": np.zeros((total, CELLS, 1), np.float32),
        "shapes_now": np.zeros((total, CELLS, len(SHAPES)), np.float32),
        "shapes_before": np.zeros((total, CELLS, len(SHAPES)), np.float32),
    }
    out["time"][:] = np.arange(total, dtype=np.float32)[:, None, None] / 8 - 1
    start = 0
    before = np.zeros(len(SHAPES), np.float32)
    for number, part in enumerate(segments):
        rows = slice(start, start + len(part.frames))
        out["segment"][rows] = number
        out["cut"][start] = int(number > 0)
        item = items[number]
        visible = np.array([t.visible[part.frames] for t in part.shot.things])  # [things, n]
        seen = np.maximum.accumulate(visible, 1)
        out["objects"][rows] = seen.sum(0)[:, None]
        out["shapes_before"][rows] = before
        for k, thing in enumerate(part.shot.things):
            first = int(np.argmax(visible[k]))
            out["shapes_now"][rows, :, thing.shape] = seen[k][:, None]
            here = item == k
            color = thing.color[part.frames]
            travel = thing.xy[part.frames] - thing.xy[part.frames[first]]  # [n, 2]
            way = np.where(
                np.abs(travel[:, 0]) > np.abs(travel[:, 1]),
                np.where(travel[:, 0] < 0, 1, 2),
                np.where(travel[:, 1] < 0, 3, 4),
            )
            way = np.where(np.abs(travel).max(1) < _MOVED, 0, way)
            _fill(out["shape"][rows], here, thing.shape + 1)
            _fill(out["color"][rows], here, (color + 1)[:, None])
            _fill(out["first_color"][rows], here, int(color[first]) + 1)
            _fill(out["motion"][rows], here, way[:, None])
            out["travel"][rows][here] = np.repeat(travel / _SCALE, here.sum(1), 0)
            place = (thing.xy[part.frames] - IMAGE_SIZE / 2) / _SCALE
            out["place"][rows][here] = np.repeat(place, here.sum(1), 0)
        before = np.zeros(len(SHAPES), np.float32)
        before[[t.shape for t, v in zip(part.shot.things, seen, strict=True) if v[-1]]] = 1
        start = rows.stop
    return out


def _fill(target: NDArray, where: NDArray[np.bool_], value: NDArray | int) -> None:
    """Set the covered cells of ``target [n, 49]`` to ``value`` (scalar or ``[n, 1]``)."""
    np.copyto(target, value, where=where)


def named_targets(seen: Sighting) -> dict[str, NDArray]:
    """What the question token that names ``seen`` should know about it."""
    return {
        "segment": np.int64(seen.segment),
        "shape": np.int64(seen.shape),
        "first_color": np.int64(seen.colors[0]),
        "last_color": np.int64(seen.colors[-1]),
        "place": ((seen.xy[0] - IMAGE_SIZE / 2) / _SCALE).astype(np.float32),
        "travel": (seen.travel / _SCALE).astype(np.float32),
        "time": np.array([seen.times.mean() / 8 - 1], np.float32),
    }


def _find(words: list[int], phrase: list[int]) -> int:
    """Index of the last word of ``phrase`` in ``words``."""
    for at in range(len(words) - len(phrase) + 1):
        if words[at : at + len(phrase)] == phrase:
            return at + len(phrase) - 1
    raise AssertionError("a named object is missing from its question")


def pack(
    clips: Sequence[tuple[list[Segment], list[Question]]],
    items: NDArray[np.int8] | None,
    slots: int,
    hard: dict[str, float],
) -> PackedBatch:
    """Arrange clips and their questions.

    Args:
        clips: segments and questions of every clip.
        items: what each cell of the shots shows, ``[N, 16, 49]``; None draws the clips.
        slots: questions per clip.
        hard: loss weights other than 1, by type.
    """
    size = len(clips)
    shape = (size, slots, QUESTION_TOKENS)
    ids, target = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64)
    weight = np.zeros(shape[:2], np.float32)
    choices, at, named = [], [], []
    for b, (_, questions) in enumerate(clips):
        for j, question in enumerate(questions):
            words = encode(question.question)
            options = [encode(c)[0] for c in question.candidates]
            right = question.candidates.index(question.answer)
            row = [*words, ASSISTANT_ID, options[right]]
            ids[b, j, : len(row)] = row
            target[b, j, len(row) - 2 : len(row)] = options[right], EOS_ID
            weight[b, j] = hard.get(question.type, 1.0)
            choices.append((b, j, question.type, options, right))
            for phrase, seen in question.about:
                at.append((b, j, _find(words, encode(phrase))))
                named.append(named_targets(seen))
    if items is None:
        pixels, shown = _draw([segments for segments, _ in clips])
    else:
        pixels, shown = None, [[items[s.index][s.frames] for s in c] for c, _ in clips]
    videos = [video_targets(c, seen) for (c, _), seen in zip(clips, shown, strict=True)]
    return PackedBatch(
        shot=np.array([[s.index for s in c for _ in s.frames] for c, _ in clips]),
        frame=np.array([np.concatenate([s.frames for s in c]) for c, _ in clips]),
        ids=ids,
        target=target,
        weight=weight,
        choices=choices,
        video={k: np.stack([v[k] for v in videos]) for k in videos[0]},
        named={k: np.stack([n[k] for n in named]) for k in named[0]} if named else {},
        named_at=np.array(at, np.int64).reshape(-1, 3),
        pixels=pixels,
    )


def _draw(
    clips: Sequence[Sequence[Segment]],
) -> tuple[NDArray[np.uint8], list[list[NDArray[np.int8]]]]:
    """Pixels ``[B, T, H, W, 3]`` of clips, and what their cells show, by segment."""
    pixels, shown = [], []
    for segments in clips:
        drawn = [render(s.shot, s.frames) for s in segments]
        pixels.append(np.concatenate([p for p, _ in drawn]))
        shown.append([labels.item.astype(np.int8) for _, labels in drawn if labels is not None])
    return np.stack(pixels), shown


def make_clips(
    rng: np.random.Generator, scenery: Scenery, frames: int, count: int, slots: int
) -> list[tuple[list[Segment], list[Question]]]:
    """Compose ``count`` clips with up to ``slots`` questions each."""
    clips = []
    for _ in range(count):
        segments = compose(rng, scenery.pool, frames)
        questions = QuestionWriter(rng, segments).write()
        clips.append((segments, pick_questions(rng, questions, slots)))
    return clips


@dataclass(frozen=True)
class DrawClips:
    """Picklable source of training batches; ``draw(step)`` depends on seed and step only."""

    seed: int
    scenery: Path | ShotSet
    phases: tuple[Phase, ...]
    short_every: int
    long_every: int
    slots: int
    hard: tuple[tuple[str, float], ...]
    intervals: tuple[tuple[float | None, float], ...] = ((None, 1.0),)

    def phase_at(self, step: int) -> Phase:
        """The phase that ``step`` belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def shape(self, step: int) -> tuple[int, int]:
        """Frames and clips of the batch at ``step``; some of the last phase differ in length."""
        phase = self.phase_at(step)
        last = phase is self.phases[-1] and len(self.phases) > 1
        if last and phase.frames < 32 and step % self.long_every == self.long_every - 1:
            return phase.frames * 2, max(1, phase.batch // 2)
        if last and step % self.short_every == self.short_every - 1:
            frames = max(4, phase.frames // 2)
            same = [p.batch for p in self.phases if p.frames == frames]
            return frames, same[0] if same else phase.batch
        return phase.frames, phase.batch

    def __call__(self, step: int) -> PackedBatch:
        """The batch of ``step``."""
        rng = np.random.default_rng((self.seed, 5, step))
        frames, batch = self.shape(step)
        scenery = load_scenery(self.scenery)
        clips = make_clips(rng, scenery, frames, batch, self.slots)
        found = pack(clips, scenery.items, self.slots, dict(self.hard))
        if len(self.intervals) > 1:
            paces, shares = zip(*self.intervals, strict=True)
            found.interval = paces[int(rng.choice(len(paces), p=shares))]
        return found
