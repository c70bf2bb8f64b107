"""The procedural world: shapes, colours, glyph cards and the metadata of one shot.

A *shot* is a description without pixels: a background, one to four coloured shapes with their
positions in each of its frames, optionally a digit card, and optionally a letter card that is
visible for exactly one frame.  :mod:`earlytom.tiny.render` turns shots into pixels and
:mod:`earlytom.tiny.questions` turns the same metadata into questions, so every answer follows
from what is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

IMAGE_SIZE = 112
CELL = 16  # pixels covered by one pooled visual token
GRID = IMAGE_SIZE // CELL
CELLS = GRID * GRID
SHOT_FRAMES = 16

SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 220, 50),
    "purple": (165, 50, 200),
    "cyan": (50, 210, 220),
    "orange": (240, 135, 30),
    "white": (240, 240, 240),
}
COLORS = tuple(PALETTE)
LETTERS = ("E", "F", "H", "K", "L", "T", "X", "Z")
DIRECTIONS = ("left", "right", "up", "down")
RELATIONS = ("left", "right", "above", "below")
MOMENTS = ("start", "early", "late", "end")
SIZES = (20, 22, 24, 26, 28)

MARGIN = 3.0
DIGIT_CARD = (14, 18)  # width, height in pixels
LETTER_CARD = (19, 25)
MIN_TRAVEL = 40.0  # pixels a moving object covers over a whole shot

Array = NDArray[np.float64]


@dataclass
class Thing:
    """One coloured shape over the frames of a shot.

    ``xy`` is ``[frames, 2]`` (centre in pixels), ``color`` ``[frames]`` (index into
    :data:`COLORS`) and ``visible`` ``[frames]`` (bool).
    """

    shape: int
    size: int
    xy: Array
    color: NDArray[np.int64]
    visible: NDArray[np.bool_]
    moving: bool


@dataclass
class Card:
    """A digit or letter card: which glyph, where, and in which frames (``visible [frames]``)."""

    value: int
    xy: Array
    visible: NDArray[np.bool_]


@dataclass
class Shot:
    """Everything needed to draw a shot and to answer questions about it."""

    things: list[Thing]
    digit: Card | None
    letter: Card | None
    base: Array  # mean background colour, [3]
    texture: int  # 0 smooth, 1 stripes, 2 checks
    jitter: NDArray[np.int64]  # camera offset per frame, [frames, 2]
    seed: int  # texture and sensor noise
    frames: int = SHOT_FRAMES
    shapes: frozenset[int] = field(default_factory=frozenset)


def make_shot(rng: np.random.Generator, frames: int = SHOT_FRAMES) -> Shot:
    """Draw one random shot.  The number of shapes is exactly uniform over 1..4."""
    count = int(rng.integers(1, 5))
    movers = int(rng.random() < 0.6) + int(rng.random() < 0.15)
    while True:
        placed = _place_things(rng, count, min(movers, count), frames)
        if placed is not None:
            break
    things, boxes = placed
    spare = [c for c in rng.permutation(len(COLORS)) if all(c != t.color[0] for t in things)]
    _change_color(rng, things, int(spare[0]), frames)
    _appear_or_vanish(rng, things, frames)
    digit = _place_card(rng, DIGIT_CARD, 10, boxes, frames) if rng.random() < 0.4 else None
    letter = None
    if rng.random() < 0.55:
        letter = _place_card(rng, LETTER_CARD, len(LETTERS), boxes, frames)
        if letter is not None:
            letter.visible[:] = False
            letter.visible[int(rng.integers(frames))] = True
    walk = np.cumsum(rng.normal(0, 0.6, (frames, 2)), 0)
    return Shot(
        things=things,
        digit=digit,
        letter=letter,
        base=rng.uniform(30, 125, 3),
        texture=int(rng.integers(3)),
        jitter=np.clip(np.round(walk - walk.mean(0)), -3, 3).astype(np.int64),
        seed=int(rng.integers(1 << 31)),
        frames=frames,
        shapes=frozenset(t.shape for t in things),
    )


def _place_things(
    rng: np.random.Generator, count: int, movers: int, frames: int
) -> tuple[list[Thing], list[tuple[Array, float, float]]] | None:
    """Place ``count`` shapes without overlap in any frame, movers first; ``None`` if stuck."""
    shapes = rng.permutation(len(SHAPES))[:count]
    colors = rng.permutation(len(COLORS))[:count]
    things: list[Thing] = []
    boxes: list[tuple[Array, float, float]] = []  # (xy per frame, width, height)
    for i in range(count):
        size = int(rng.choice(SIZES))
        for _ in range(25):
            xy = _trajectory(rng, size, i < movers, frames)
            if _is_free(xy, size, size, boxes):
                break
        else:
            return None
        boxes.append((xy, size, size))
        things.append(
            Thing(
                shape=int(shapes[i]),
                size=size,
                xy=xy,
                color=np.full(frames, int(colors[i])),
                visible=np.ones(frames, bool),
                moving=i < movers,
            )
        )
    return things, boxes


def _trajectory(rng: np.random.Generator, size: int, moving: bool, frames: int) -> Array:
    """Centre positions ``[frames, 2]``: fixed, or a straight axis-aligned constant-speed path."""
    low, high = size / 2 + MARGIN, IMAGE_SIZE - size / 2 - MARGIN
    if not moving:
        return np.repeat(rng.uniform(low, high, 2)[None], frames, 0)
    travel = rng.uniform(MIN_TRAVEL, high - low)
    path = rng.uniform(low, high - travel) + np.linspace(0, travel, frames)
    direction = int(rng.integers(4))
    if direction in (0, 2):  # left and up run towards zero
        path = path[::-1]
    across = np.full(frames, rng.uniform(low, high))
    return np.stack([path, across] if direction < 2 else [across, path], 1)


def _is_free(
    xy: Array, width: float, height: float, boxes: list[tuple[Array, float, float]]
) -> bool:
    """Whether a box following ``xy`` touches none of ``boxes`` in any frame."""
    for other, w, h in boxes:
        gap = np.abs(xy - other)
        touching = (gap[:, 0] < (w + width) / 2 + 1) & (gap[:, 1] < (h + height) / 2 + 1)
        if touching.any():
            return False
    return True


def _change_color(rng: np.random.Generator, things: list[Thing], color: int, frames: int) -> None:
    """Give one static shape a second colour from the middle of the shot on (35 % of shots)."""
    static = [t for t in things if not t.moving]
    if static and rng.random() < 0.35:
        static[0].color[int(rng.integers(5, frames - 4)) :] = color


def _appear_or_vanish(rng: np.random.Generator, things: list[Thing], frames: int) -> None:
    """Let the last shape of a shot with several appear late or vanish early (20 % of shots)."""
    last = things[-1]
    steady = not last.moving and bool((last.color == last.color[0]).all())
    if len(things) > 1 and steady and rng.random() < 0.2:
        cut = int(rng.integers(5, frames - 4))
        if rng.random() < 0.5:
            last.visible[:cut] = False
        else:
            last.visible[cut:] = False


def _place_card(
    rng: np.random.Generator,
    size: tuple[int, int],
    values: int,
    boxes: list[tuple[Array, float, float]],
    frames: int,
) -> Card | None:
    """Find a free place for a card; ``None`` when the frame is too crowded."""
    width, height = size
    for _ in range(40):
        x = rng.uniform(width / 2 + MARGIN, IMAGE_SIZE - width / 2 - MARGIN)
        y = rng.uniform(height / 2 + MARGIN, IMAGE_SIZE - height / 2 - MARGIN)
        xy = np.repeat(np.array([[x, y]]), frames, 0)
        if _is_free(xy, width, height, boxes):
            boxes.append((xy, width, height))
            return Card(int(rng.integers(values)), xy, np.ones(frames, bool))
    return None
