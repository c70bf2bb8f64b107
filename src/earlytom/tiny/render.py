"""Pixels and dense labels of a shot.

Rendering is plain numpy sprite pasting, a few hundred to a few thousand frames per second and
core.  Each pooled 16x16-pixel cell also gets a label (:class:`CellLabels`) for the dense
pretraining of the vision tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from earlytom.tiny.sprites import card_image, shape_mask
from earlytom.tiny.world import (
    CELL,
    CELLS,
    COLORS,
    GRID,
    IMAGE_SIZE,
    LETTERS,
    PALETTE,
    SHOT_FRAMES,
    Card,
    Shot,
    make_shot,
)

Float = NDArray[np.float32]

_COLOR_VALUES = np.array([PALETTE[c] for c in COLORS], np.float32)
_PAD = 4  # background pixels beyond the frame, for the camera jitter
_MIN_COVER = 12.0  # pixels of a cell an object must cover to own it


@dataclass
class CellLabels:
    """What each pooled cell shows, per frame.

    Shapes: ``item [T, 49]`` (index of the thing, ``len(things)`` for the digit card,
    ``len(things) + 1`` for the letter card, -1 for background), ``classes [T, 49, 4]`` (shape,
    colour, digit, letter; 0 = none), ``centre [T, 49, 2]`` (object centre in pixels as drawn) and
    ``mean [T, 49, 3]`` (mean colour, 0..255).
    """

    item: NDArray[np.int64]
    classes: NDArray[np.int64]
    centre: Float
    mean: Float


@lru_cache(maxsize=1)
def _noise_bank() -> Float:
    """64 frames of unit sensor noise, drawn once."""
    rng = np.random.default_rng(123)
    shape = (64, IMAGE_SIZE, IMAGE_SIZE, 3)
    return np.clip(rng.standard_normal(shape, dtype=np.float32), -4, 4)


def _background(rng: np.random.Generator, shot: Shot) -> Float:
    """Textured background ``[H + 2 * pad, W + 2 * pad, 3]`` around the shot's base colour."""
    side = IMAGE_SIZE + 2 * _PAD
    base = shot.base.astype(np.float32)
    if shot.texture == 0:  # smooth colour field, bilinear between a few random knots
        n = int(rng.integers(3, 8))
        knots = base + rng.normal(0, 14, (n, n, 3)).astype(np.float32)
        at = np.linspace(0, n - 1.001, side)
        low = at.astype(int)
        frac = (at - low).astype(np.float32)
        rows = knots[low] * (1 - frac)[:, None, None] + knots[low + 1] * frac[:, None, None]
        image = rows[:, low] * (1 - frac)[None, :, None] + rows[:, low + 1] * frac[None, :, None]
    else:
        period = int(rng.integers(9, 24))
        band = np.arange(side) // period
        step = rng.normal(0, 16, 3).astype(np.float32)
        if shot.texture == 1:  # stripes
            stripes = (band % 2)[None, :] if rng.random() < 0.5 else (band % 2)[:, None]
            pattern = np.broadcast_to(stripes, (side, side))
        else:  # checks
            pattern = (band[:, None] + band[None]) % 2
        image = base + pattern[..., None] * step
    grain = rng.normal(0, 3, (side, side, 1)).astype(np.float32)
    return np.asarray(image + grain, np.float32)


def _window(centre: float, length: int) -> tuple[slice, slice]:
    """Image and sprite slices along one axis for a sprite centred at ``centre``."""
    start = round(centre - length / 2)
    low, high = max(0, -start), min(length, IMAGE_SIZE - start)
    high = max(high, low)
    return slice(start + low, start + high), slice(low, high)


def render(
    shot: Shot,
    frames: Sequence[int] | NDArray | None = None,
    *,
    noise: float = 6.0,
    labels: bool = True,
) -> tuple[NDArray[np.uint8], CellLabels | None]:
    """Draw the given frames of a shot: ``[T, 112, 112, 3]`` uint8, and its cell labels.

    The pixels of a frame do not depend on which other frames are drawn.
    """
    rng = np.random.default_rng(shot.seed)
    ground = _background(rng, shot)
    tone = rng.uniform(0.82, 1.06, len(shot.things))
    slope = rng.uniform(-0.25, 0.25, (len(shot.things), 2))
    grain = rng.integers(0, 64, shot.frames), rng.integers(0, 2, shot.frames)
    chosen = range(shot.frames) if frames is None else [int(t) for t in frames]
    pixels = np.empty((len(chosen), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    found: list[tuple[NDArray, ...]] = []
    for row, t in enumerate(chosen):
        jx, jy = (int(v) for v in shot.jitter[t])
        top, left = _PAD + jy, _PAD + jx
        image = ground[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE].copy()
        cover = np.zeros((len(shot.things) + 2, IMAGE_SIZE, IMAGE_SIZE), np.float32)
        for k, thing in enumerate(shot.things):
            if thing.visible[t]:
                mask = shape_mask(thing.shape, thing.size)
                ramp = np.arange(thing.size) / thing.size - 0.5
                shade = tone[k] * (1 + ramp[:, None] * slope[k, 0] + ramp[None] * slope[k, 1])
                fill = _COLOR_VALUES[thing.color[t]] * shade[..., None].astype(np.float32)
                _paste(image, cover[k], mask, fill, thing.xy[t] - (jx, jy))
        for k, card, sprite in _cards(shot):
            if card.visible[t]:
                mask = np.ones(sprite.shape[:2], np.float32)
                _paste(image, cover[k], mask, sprite, card.xy[t] - (jx, jy))
        if labels:
            found.append(_label(shot, t, cover, image))
        flip = 1 if grain[1][t] else -1
        image += noise * _noise_bank()[grain[0][t]][:, ::flip]
        pixels[row] = np.clip(image, 0, 255).astype(np.uint8)
    if not labels:
        return pixels, None
    item, classes, centre, mean = (np.stack(part) for part in zip(*found, strict=True))
    return pixels, CellLabels(item, classes, centre, mean)


def _cards(shot: Shot) -> list[tuple[int, Card, Float]]:
    """The cards of a shot as (item index, card, sprite)."""
    out: list[tuple[int, Card, Float]] = []
    n = len(shot.things)
    if shot.digit is not None:
        out.append(
            (n, shot.digit, card_image(str(shot.digit.value), 2, (225, 225, 215), (20, 20, 25)))
        )
    if shot.letter is not None:
        glyph = LETTERS[shot.letter.value]
        out.append((n + 1, shot.letter, card_image(glyph, 3, (245, 235, 160), (60, 20, 90))))
    return out


def _paste(image: Float, cover: Float, mask: Float, fill: Float, centre: NDArray) -> None:
    """Blend ``fill [h, w, 3]`` into ``image`` under ``mask [h, w]`` and record the coverage."""
    iy, sy = _window(float(centre[1]), mask.shape[0])
    ix, sx = _window(float(centre[0]), mask.shape[1])
    alpha = mask[sy, sx, None]
    region = image[iy, ix]
    region *= 1 - alpha
    region += alpha * fill[sy, sx]
    cover[iy, ix] = alpha[..., 0]


def _label(shot: Shot, t: int, cover: Float, image: Float) -> tuple[NDArray, ...]:
    """Cell labels of one frame, see :class:`CellLabels`."""
    count = len(shot.things)
    area = cover.reshape(-1, GRID, CELL, GRID, CELL).sum((2, 4)).reshape(count + 2, CELLS)
    item = np.where(area.max(0) > _MIN_COVER, area.argmax(0), -1)
    classes = np.zeros((count + 3, 4), np.int64)  # the last row is background (item -1)
    centre = np.zeros((count + 3, 2), np.float32)
    for k, thing in enumerate(shot.things):
        classes[k, :2] = thing.shape + 1, thing.color[t] + 1
        centre[k] = thing.xy[t] - shot.jitter[t]
    for k, card, column in ((count, shot.digit, 2), (count + 1, shot.letter, 3)):
        if card is not None:
            classes[k, column] = card.value + 1
            centre[k] = card.xy[t] - shot.jitter[t]
    mean = image.reshape(GRID, CELL, GRID, CELL, 3).mean((1, 3)).reshape(CELLS, 3)
    return item, classes[item], centre[item], mean


@dataclass
class FrameBatch:
    """A batch of unrelated frames for dense pretraining (``B`` frames)."""

    pixels: NDArray[np.uint8]  # [B, 112, 112, 3]
    labels: CellLabels  # arrays of leading size B
    base: Float  # [B, 3], mean background colour
    texture: NDArray[np.int64]  # [B]


def frame_batch(rng: np.random.Generator, size: int, per_shot: int = 2) -> FrameBatch:
    """Draw ``size`` frames from fresh shots, showing the flashed letter more often than it is."""
    pixels, labels = [], []
    base: list[NDArray] = []
    texture: list[int] = []
    while len(base) < size:
        shot = make_shot(rng)
        frames = rng.choice(SHOT_FRAMES, per_shot, replace=False)
        if shot.letter is not None and rng.random() < 0.7:
            frames[0] = int(np.argmax(shot.letter.visible))
        drawn, marks = render(shot, frames)
        assert marks is not None
        pixels.append(drawn)
        labels.append(marks)
        base += [shot.base] * per_shot
        texture += [shot.texture] * per_shot
    merged = CellLabels(
        *(
            np.concatenate([getattr(m, name) for m in labels])[:size]
            for name in ("item", "classes", "centre", "mean")
        )
    )
    return FrameBatch(
        np.concatenate(pixels)[:size],
        merged,
        np.array(base[:size], np.float32),
        np.array(texture[:size]),
    )


def pair_up(rng: np.random.Generator, batch: FrameBatch, cuts: float = 0.2) -> FrameBatch:
    """Make neighbours of a batch from :func:`frame_batch` pairs that are seen together.

    Both frames of a pair are of one shot, in either order, but for a share of ``cuts``, where the
    second is of another shot.
    """
    order = np.arange(len(batch.base)).reshape(-1, 2)
    cut = np.flatnonzero(rng.random(len(order)) < cuts)
    order[cut, 1] = np.roll(order[cut, 1], 1)
    flipped = rng.random(len(order)) < 0.5
    order[flipped] = order[flipped, ::-1]
    flat = order.ravel()
    labels = (getattr(batch.labels, name)[flat] for name in ("item", "classes", "centre", "mean"))
    return FrameBatch(
        batch.pixels[flat], CellLabels(*labels), batch.base[flat], batch.texture[flat]
    )
