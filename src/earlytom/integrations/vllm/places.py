"""Positions of video tokens that are known only once the video is encoded.

vLLM fixes the positions of a prompt before anything is encoded; prefix caching, chunked prefill and
preemption rely on it. So text gets its final positions then: they follow from the frames of every
video, not from what is kept of it. The placeholders of a compressed video get the position at
which the video begins. What is missing, an offset on every axis, rides along with the embeddings in
some more channels, stays with them in the encoder cache, and is added in front of the language
model.

Channels hold digits to the base 256, which every float format of embeddings holds exactly (bfloat16
rounds integers beyond 256).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from earlytom.ops.tensors import to_device

BASE, DIGITS = 256, 3


def channels(axes: int) -> int:
    """Return how many channels the offsets on so many axes take."""
    return axes * DIGITS


def attach(rows: Tensor, offsets: Tensor) -> Tensor:
    """Return ``[n, dim + 3 axes]``: embeddings with the offsets of their positions.

    Args:
        rows: ``[n, dim]``.
        offsets: ``[axes, n]`` int64, in [0, 256^3).
    """
    digits = [offsets // BASE**i % BASE for i in range(DIGITS)]
    return torch.cat([rows, torch.cat(digits).T.to(rows)], 1)


def detach(wide: Tensor, axes: int) -> tuple[Tensor, Tensor]:
    """Undo :func:`attach`."""
    rows, digits = wide[:, : -channels(axes)], wide[:, -channels(axes) :]
    parts = digits.T.round().long().unflatten(0, (DIGITS, axes))
    *lower, total = parts.unbind()
    for digit in reversed(lower):
        total = total * BASE + digit
    return rows, total


class Places:
    """Offsets of the tokens of one step, between their embedding and their forward pass.

    The sum is part of the forward pass and lives at a fixed address, so that CUDA graphs take it.

    Args:
        axes: of a position.
        width: of embeddings.
        capacity: tokens of a step at most.
        limit: largest position that the model's table holds.
        device: where positions are.
    """

    def __init__(
        self, axes: int, width: int, capacity: int, limit: int, device: torch.device
    ) -> None:
        self.axes = axes
        self.width = width
        self.limit = limit
        # one more column, as vLLM has it, so that rows are strided in every slice
        shape = (axes, capacity + 1)
        self._offsets = torch.zeros(shape, dtype=torch.int64, device=device)
        self._sum = torch.zeros(shape, dtype=torch.int64, device=device)
        self._dirty = False

    def take(
        self, embeddings: Sequence[Tensor] | Tensor | None, mask: Tensor | None
    ) -> list[Tensor]:
        """Begin a step: return its embeddings without offsets.

        Args:
            embeddings: of the placeholders of this step, in order; with or without offsets.
            mask: ``[tokens]`` bool, which tokens these are.
        """
        if self._dirty:
            self._offsets.zero_()
            self._dirty = False
        bare: list[Tensor] = []
        offsets: list[Tensor] = []
        for rows in embeddings if embeddings is not None else ():
            if rows.shape[-1] == self.width:
                bare.append(rows)
                offsets.append(self._offsets.new_zeros(self.axes, rows.shape[0]))
                continue
            rows, own = detach(rows, self.axes)
            bare.append(rows)
            offsets.append(own)
            self._dirty = True
        if self._dirty:
            assert mask is not None
            where = mask.nonzero().squeeze(1)
            if where.device != self._offsets.device:
                where = to_device(where, self._offsets.device)
            self._offsets.index_copy_(1, where, torch.cat(offsets, 1).to(self._offsets.device))
        return bare

    def add(self, positions: Tensor) -> Tensor:
        """Return the positions ``[axes, tokens]`` of the step with the offsets added.

        None goes beyond the table: such requests are refused where they come in, as far as that is
        known there, and a number read from behind a table would take the server down.
        """
        n = positions.shape[-1]
        total = self._sum[:, :n]
        torch.add(positions, self._offsets[:, :n], out=total)
        return total.clamp_(max=self.limit)
