"""Sprites: antialiased shape masks and cards with bitmap glyphs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from earlytom.tiny.world import SHAPES

Float = NDArray[np.float32]

# 5x7 bitmap glyphs, one string of rows each.
_GLYPHS = {
    "0": "01110100011001110101110011000101110",
    "1": "00100011000010000100001000010001110",
    "2": "01110100010000100010001000100011111",
    "3": "11111000100010000010000011000101110",
    "4": "00010001100101010010111110001000010",
    "5": "11111100001111000001000011000101110",
    "6": "00110010001000011110100011000101110",
    "7": "11111000010001000100010000100001000",
    "8": "01110100011000101110100011000101110",
    "9": "01110100011000101111000010001001100",
    "E": "11111100001000011110100001000011111",
    "F": "11111100001000011110100001000010000",
    "H": "10001100011000111111100011000110001",
    "K": "10001100101010011000101001001010001",
    "L": "10000100001000010000100001000011111",
    "T": "11111001000010000100001000010000100",
    "X": "10001100010101000100010101000110001",
    "Z": "11111000010001000100010001000011111",
}


@lru_cache(maxsize=256)
def shape_mask(shape: int, size: int) -> Float:
    """Antialiased coverage mask ``[size, size]`` in 0..1 of a shape."""
    scale = 4
    n = size * scale
    y, x = np.mgrid[0:n, 0:n]
    x = (x + 0.5) / n * 2 - 1
    y = (y + 0.5) / n * 2 - 1
    radius = np.sqrt(x * x + y * y)
    name = SHAPES[shape]
    if name == "circle":
        mask = radius < 0.97
    elif name == "square":
        mask = (np.abs(x) < 0.86) & (np.abs(y) < 0.86)
    elif name == "triangle":
        mask = (y < 0.85) & (y > -0.95 + 1.9 * np.abs(x))
    elif name == "cross":
        mask = np.minimum(np.abs(x), np.abs(y)) < 0.33
        mask &= np.maximum(np.abs(x), np.abs(y)) < 0.98
    elif name == "ring":
        mask = (radius < 0.98) & (radius > 0.57)
    else:
        mask = _star(x, y, radius)
    return mask.reshape(size, scale, size, scale).mean((1, 3)).astype(np.float32)


def _star(x: NDArray, y: NDArray, radius: NDArray) -> NDArray[np.bool_]:
    """Five-pointed star: inside the line between each tip and its neighbouring notch."""
    wedge = np.pi * 2 / 5
    angle = np.abs((np.arctan2(x, -y) + wedge / 2) % wedge - wedge / 2)
    notch_x, notch_y = 0.42 * np.cos(wedge / 2), 0.42 * np.sin(wedge / 2)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    side: NDArray[np.bool_] = (notch_x - 1.0) * py - notch_y * (px - 1.0) > 0
    centre = side.shape[0] // 2
    return side if side[centre, centre] else ~side


@lru_cache(maxsize=64)
def card_image(glyph: str, scale: int, ground: tuple[int, ...], ink: tuple[int, ...]) -> Float:
    """An opaque card ``[h, w, 3]`` with a glyph and a two-pixel border."""
    bits = np.array([float(b) for b in _GLYPHS[glyph]], np.float32).reshape(7, 5)
    bits = np.pad(np.kron(bits, np.ones((scale, scale), np.float32)), 2)[..., None]
    paper, pen = np.array(ground, np.float32), np.array(ink, np.float32)
    return (paper * (1 - bits) + pen * bits).astype(np.float32)
