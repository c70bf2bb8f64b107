"""Colours and marks of methods, the same in pictures and on the page."""

from __future__ import annotations

from collections.abc import Sequence

# Okabe and Ito's palette without yellow, which is too pale for text and lines on white
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE_COLOUR = "#000000"
MARKERS = ("o", "s", "D", "^", "v", "P")
REFERENCE_MARKER = "X"
GREY = "#C4C4C4"
GREY_TEXT = "#6A6A6A"


def styles(highlighted: Sequence[str], reference: str) -> dict[str, tuple[str, str]]:
    """Return (colour, marker) of every highlighted label; the reference is black."""
    others = [x for x in highlighted if x != reference]
    found = {
        label: (PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)])
        for i, label in enumerate(others)
    }
    if reference in highlighted:
        found[reference] = (REFERENCE_COLOUR, REFERENCE_MARKER)
    return {x: found[x] for x in highlighted}


def darker(colour: str, share: float = 0.7) -> str:
    """Return a darker shade of ``#RRGGBB``, for text on white."""
    return "#" + "".join(f"{int(int(colour[i : i + 2], 16) * share):02X}" for i in (1, 3, 5))
