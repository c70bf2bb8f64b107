"""Builds what a method sees at a point inside the language model, without a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from earlytom.stages import InnerState


def inner_state(
    hidden: Tensor, visual: Tensor, attention: Tensor | None = None, **changes: Any
) -> InnerState:
    """State of one sequence: the True of ``visual`` are one frame in raster order, no newlines.

    Args:
        hidden: ``[n, dim]``.
        visual: ``[n]`` bool.
        attention: ``[heads, n]`` row of the last query, or ``[heads, q, n]``.
        **changes: any other field.
    """
    count = int(visual.sum())
    patch = torch.where(visual, visual.long().cumsum(0) - 1, -1)
    fields: dict[str, Any] = {
        "point": 0,
        "layer": 2,
        "n_layers": 28,
        "hidden": hidden,
        "visual": visual,
        "attention": attention[:, None] if attention is not None and attention.dim() == 2
        else attention,
        "frame": torch.where(visual, 0, -1),
        "patch": patch,
        "entered": count,
        "uncompressed": count,
    }  # fmt: skip
    return InnerState(**{**fields, **changes})


def span(n: int, start: int, length: int) -> Tensor:
    """``[n]`` bool, True in ``start .. start + length - 1``."""
    place = torch.arange(n)
    return (place >= start) & (place < start + length)
