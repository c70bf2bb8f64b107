"""Which columns of a prompt are video tokens, and where in their videos they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from earlytom.models.base import Adapter
from earlytom.ops.tensors import to_device
from earlytom.stages import Shape

NOT_VISUAL, NEWLINE = -1, -2


@dataclass(frozen=True)
class VideoLayout:
    """Placeholders of all videos of a call, in order.

    Attributes:
        table: ``[3, placeholders]`` int64 on the CPU: index in the token grid of its frame (-2 for
            newline tokens); frame slot, running over all videos (-1 for newline tokens); first
            frame of its video.
        rows: placeholders of every video.
    """

    table: Tensor
    rows: list[int]

    @classmethod
    def of(cls, adapter: Adapter, rows: list[int], shapes: list[Shape | None]) -> VideoLayout:
        """Layout of videos that have so many placeholder ``rows`` each.

        Args:
            adapter: knows where newline tokens stand.
            rows: placeholders of every video.
            shapes: of every video; None: found from ``rows``, where all frames are of one size.
        """
        parts: list[Tensor] = []
        known: dict[tuple[int, Shape | None], tuple[Tensor, int]] = {}
        seen = 0
        for key in zip(rows, shapes, strict=True):
            if key not in known:
                known[key] = _one_video(adapter, *key)
            part, n_frames = known[key]
            shift = torch.tensor([0, seen, seen])[:, None]
            parts.append(torch.where(part == NEWLINE, part, part + shift))
            seen += n_frames
        table = torch.cat(parts, 1) if parts else torch.zeros(3, 0, dtype=torch.int64)
        table[1].masked_fill_(table[1] == NEWLINE, NOT_VISUAL)
        return cls(table, list(rows))

    def spread(self, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Return patch and frame of every column of ``visual [batch, L]``; a row counts from 0.

        Nothing is read back: the placeholders of a batch are those of its rows, one after another.
        """
        device, total = visual.device, self.table.shape[1]
        if not total:
            none = torch.full(visual.shape, NOT_VISUAL, device=device)
            return none, none
        patch, frame, first = to_device(self.table, device)
        count = visual.sum(1)
        rank = (visual.flatten().cumsum(0) - 1).clamp(0, total - 1).view(visual.shape)
        start = (count.cumsum(0) - count).clamp(max=total - 1)
        inside = visual & (frame[rank] >= 0)
        return (
            torch.where(visual, patch[rank], NOT_VISUAL),
            torch.where(inside, frame[rank] - first[start][:, None], NOT_VISUAL),
        )


def _one_video(adapter: Adapter, rows: int, shape: Shape | None) -> tuple[Tensor, int]:
    """Return the table ``[3, rows]`` of one video and its number of frames."""
    grid = adapter.grid if shape is None else shape[1]
    size = grid[0] * grid[1]
    frames = _frames_of(adapter, rows) if shape is None else shape[0]
    place = torch.arange(rows)
    if frames is None or adapter.video_placeholders(frames, grid) != rows:
        # a part of a video (chunked prefill): where its newlines are is not known
        return torch.stack([place % size, place // size, place * 0]), -(-rows // size)
    cells = adapter.take_tokens(place[:, None], frames)[..., 0]
    table = torch.full((3, rows), NEWLINE)
    table[0, cells] = torch.arange(size)
    table[1, cells] = torch.arange(frames)[:, None]
    table[2] = 0
    return table, frames


def _frames_of(adapter: Adapter, rows: int) -> int | None:
    """Return how many frames take ``rows`` placeholders, None if no number does."""
    most = rows // adapter.tokens_per_frame
    return next((n for n in range(most, 0, -1) if adapter.placeholder_count([n]) == rows), None)


@dataclass
class VideoColumns:
    """The video tokens among the columns present; updated at every point.

    Attributes:
        visual: ``[batch, w]`` bool.
        patch: ``[batch, w]`` int64, see :class:`earlytom.stages.InnerState`.
        frame: ``[batch, w]`` int64, likewise.
        n_visual: True in every row of ``visual``.
        n_tokens: of these, not newline tokens.
        entered: tokens with which every row entered layer 0.
        uncompressed: tokens of the uncompressed prompt.
        bias: ``[batch, w]`` float32 log weights, or None for 0.
        memory: scratch of every row.
    """

    visual: Tensor
    patch: Tensor
    frame: Tensor
    n_visual: list[int]
    n_tokens: list[int]
    entered: tuple[int, ...]
    uncompressed: tuple[int, ...]
    bias: Tensor | None = None
    memory: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = self.memory or [{} for _ in self.n_visual]

    def keep(self, rows: Tensor, valid: Tensor, dropped: list[int]) -> None:
        """Keep the columns ``rows [batch, m]`` where ``valid``; ``dropped`` are gone from each row.

        Reads counts back only where newline tokens may be among the dropped.
        """
        rows, valid = rows.to(self.visual.device), valid.to(self.visual.device)
        self.visual = self.visual.gather(1, rows) & valid
        self.patch = self.patch.gather(1, rows).masked_fill(~valid, NOT_VISUAL)
        self.frame = self.frame.gather(1, rows).masked_fill(~valid, NOT_VISUAL)
        if self.bias is not None:
            self.bias = self.bias.gather(1, rows).masked_fill(~valid, 0.0)
        plain = all(
            not d or v == t for d, v, t in zip(dropped, self.n_visual, self.n_tokens, strict=True)
        )
        self.n_visual = [v - d for v, d in zip(self.n_visual, dropped, strict=True)]
        if plain:
            self.n_tokens = [t - d for t, d in zip(self.n_tokens, dropped, strict=True)]
        else:
            self.n_tokens = (self.patch >= 0).sum(1).tolist()  # one sync
