"""Where the tokens of an image are among the rows that a model scatters for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from earlytom.override import Override
from earlytom.stages import Grid


@dataclass(frozen=True)
class ImageLayout:
    """The rows of one image.

    Attributes:
        grid: (height, width) of the tokens, as a method sees them.
        tokens: ``[n]`` int64 ascending, rows that are tokens; the others are newlines.
        lines: per newline its row and the tokens (start, end) that it closes.
    """

    grid: Grid
    tokens: Tensor
    lines: tuple[tuple[int, int, int], ...] = ()

    @classmethod
    def plain(cls, grid: Grid) -> ImageLayout:
        """Layout of an image without newlines."""
        return cls(grid, torch.arange(grid[0] * grid[1]))

    def newlines(self, kept: Tensor) -> list[int]:
        """Return the newline rows that stay, for ``kept [n]`` bool on the host.

        Those behind complete lines do, and the one that ends the image.
        """
        rows = len(self.tokens) + len(self.lines)
        return [row for row, a, b in self.lines if row == rows - 1 or bool(kept[a:b].all())]


def layout_of_mask(mask: Tensor, first: int, grid: Grid | None) -> ImageLayout:
    """Return the layout of an image whose tokens are where ``mask [rows]`` is True.

    Args:
        mask: on the host.
        first: tokens in front of the first line that a newline closes.
        grid: of the tokens, None for one row of all.
    """
    tokens = mask.nonzero().flatten()
    lines, start = [], first
    for number, row in enumerate((~mask).nonzero().flatten().tolist()):
        end = row - number  # tokens in front of it
        lines.append((row, start, end))
        start = end
    whole = grid is not None and grid[0] * grid[1] == len(tokens)
    return ImageLayout(
        grid if whole and grid is not None else (1, len(tokens)), tokens, tuple(lines)
    )


class Packer:
    """Stands in for the method by which a LLaVA model joins the crops of its images.

    Notes what it is called with, so that signals of the encoder can be joined alike.

    Args:
        inner: the module that owns the method.
        name: of the method.
        watching: whether a call is to be noted.
    """

    def __init__(self, inner: Any, name: str, watching: Callable[[], bool]) -> None:
        self._watching = watching
        self._original: Callable[..., Any] = getattr(inner, name)
        self._rest: tuple[Any, ...] = ()
        self._named: dict[str, Any] = {}
        self.crops: list[int] = []
        self.remove = Override(inner, name, self).remove

    def __call__(self, image_features: Sequence[Tensor], *rest: Any, **named: Any) -> Any:
        """Join the crops ``[crops, patches, dim]`` of every image."""
        if self._watching():
            self.crops = [len(x) for x in image_features]
            self._patches = image_features[0].shape[1] if self.crops else 0
            self._rest, self._named = rest, named
        return self._original(image_features, *rest, **named)

    def joined(self, crops: Sequence[Tensor], newline: Tensor | None = None) -> list[Tensor]:
        """Join other values ``[crops, patches, dim]`` of the noted images: ``[rows, dim]``."""
        named = {**self._named, "image_newline": newline}
        found = self._original(list(crops), *self._rest, **named)
        return list(found[0] if isinstance(found, tuple) else found)

    def layouts(self, grid: Grid | None) -> list[ImageLayout]:
        """Return the layouts of the noted images.

        One crop keeps its ``grid``. Of several the tokens count as one row: those of the small
        picture, then those of the large one line by line.
        """
        ones = [torch.ones(n, self._patches, 1) for n in self.crops]
        rows = self.joined(ones, torch.zeros(1))
        layouts = []
        for n, row in zip(self.crops, rows, strict=True):
            mask = row[:, 0] > 0.5
            several = n > 1
            layouts.append(
                layout_of_mask(mask, self._patches if several else 0, None if several else grid)
            )
        return layouts
