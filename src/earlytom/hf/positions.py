"""Where surviving columns stand, in models with positions of one axis and of several (M-RoPE)."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.method import Method
from earlytom.models.base import Adapter


def positions_of(adapter: Adapter | type[Adapter], method: Method) -> str:
    """Return ``keep``, ``renumber`` or ``respace`` for ``method`` on this model, or its family.

    Positions of several axes say where in the picture a token is. Renumbering them loses that, so
    it is done only if asked for, never because it is a method's default.
    """
    resolved = method.resolved_positions()
    if adapter.position_axes > 1 and method.asked_positions == "auto" and resolved == "renumber":
        return "keep"
    return resolved


def kept_positions(given: Tensor, index: Tensor, axes: int) -> Tensor:
    """Return the positions of the columns that are left.

    Args:
        given: ``[batch or 1, L]``, or ``[axes, batch or 1, L]``; a row of text positions in front
            of the axes (it only tells packed sequences apart) is left out.
        index: ``[batch, n]`` columns.
        axes: of the model.

    Returns:
        ``[batch, n]`` or ``[axes, batch, n]``.
    """
    if given.dim() == 3:
        given = given[-axes:]
    wide = index.expand(*given.shape[:-2], -1, -1)
    return given.to(index.device).expand(wide.shape[:-1] + given.shape[-1:]).gather(-1, wide)


def on_axes(position: Tensor, axes: int) -> Tensor:
    """Give all axes the positions ``[batch, n]``, as text columns have them."""
    return position if axes == 1 or position.dim() == 3 else position.expand(axes, -1, -1)


def following(position: Tensor) -> Tensor:
    """Return the next free position ``[batch, 1]`` behind ``[(axes,) batch, n]``."""
    last = position[..., -1:]
    return (last if last.dim() == 2 else torch.amax(last, 0)) + 1
