"""One prefill on its way through the points of stage III: which columns are left, who decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from earlytom.hf.columns import VideoColumns
from earlytom.method import Method
from earlytom.stages import InnerPoint, InnerState
from earlytom.trace import note

Rope = tuple[Tensor, Tensor]
Look = Callable[[int, Tensor | None], Tensor | None]


@dataclass(frozen=True)
class Region:
    """Columns present between two points.

    Attributes:
        rows: ``[batch, w]`` layer-0 columns of this step, None for all.
        mask: ``[batch, w]`` bool, real columns, right-aligned.
        counts: real columns of every row.
    """

    rows: Tensor | None
    mask: Tensor
    counts: tuple[int, ...]

    @property
    def valid(self) -> Tensor | None:
        """``mask``, None when all columns are real."""
        return self.mask if min(self.counts) < self.mask.shape[1] else None


class Prefill:
    """Asks ``method`` at the points of a language model of ``depth`` layers.

    Attributes:
        region: columns present now.
        videos: the video tokens among them.
        columns: (layer, columns before, columns after) of every point passed.
        tokens: visual tokens of all rows in front of the first point and behind every point passed.
    """

    def __init__(
        self,
        method: Method,
        points: tuple[InnerPoint, ...],
        depth: int,
        region: Region,
        videos: VideoColumns,
    ) -> None:
        self.method = method
        self.points = points
        self.depth = depth
        self.region = region
        self.videos = videos
        self.columns: list[tuple[int, int, int]] = []
        self.tokens = [sum(videos.n_tokens)]

    def start(self, embeddings: Tensor) -> None:
        """Show the embeddings ``[batch, w, dim]`` of every sequence with visual columns."""
        for state in self._states(-1, embeddings, None).values():
            self.method.inner_start(state)

    def act(
        self, point: int, hidden: Tensor, rope: Rope | None, look: Look | None
    ) -> tuple[Tensor, Tensor] | None:
        """Ask the method at one point.

        Args:
            point: its number.
            hidden: ``[batch, w, dim]``.
            rope: cos and sin ``[batch, w, d]`` of the columns, or None.
            look: attention rows of a sequence for the queries asked for, or None.

        Returns:
            ``[batch, m, dim]`` and the columns ``[batch, m]`` of ``hidden`` that they are,
            right-aligned; None if nothing changes.
        """
        width, counts = hidden.shape[1], self.region.counts
        place = torch.arange(width, device=hidden.device)
        kept = [(place[width - n :], hidden[b, width - n :]) for b, n in enumerate(counts)]
        changed = False
        for b, state in self._states(point, hidden, rope).items():
            if look is not None:
                rows = look(b, self.method.inner_queries(state))
                state = replace(state, attention=rows)
            done = self.method.merge_inner(state)
            if done is None:
                continue
            value = state.hidden[done.index] if done.hidden is None else done.hidden
            kept[b] = done.index + (width - counts[b]), value.to(hidden.dtype)
            changed = True
        found = self._pack(hidden, kept) if changed else None
        after = width if found is None else found[0].shape[1]
        self.columns.append((self.points[point].layer, width, after))
        self.tokens.append(sum(self.videos.n_tokens))
        note(
            "inner",
            layer=self.points[point].layer,
            frame=self.videos.frame,
            patch=self.videos.patch,
        )
        return found

    def _pack(self, hidden: Tensor, kept: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Right-align what every row keeps; the region follows."""
        batch, dim, device = hidden.shape[0], hidden.shape[2], hidden.device
        counts = tuple(index.numel() for index, _ in kept)
        m = max(counts)
        rows = torch.zeros(batch, m, dtype=torch.long, device=device)
        mask = torch.zeros(batch, m, dtype=torch.bool, device=device)
        left = hidden.new_zeros(batch, m, dim)
        for b, (index, value) in enumerate(kept):
            rows[b, m - counts[b] :] = index
            mask[b, m - counts[b] :] = True
            left[b, m - counts[b] :] = value
        dropped = [a - b for a, b in zip(self.region.counts, counts, strict=True)]
        self.videos.keep(rows, mask, dropped)
        old = self.region.rows
        self.region = Region(rows if old is None else old.to(device).gather(1, rows), mask, counts)
        return left, rows

    def _states(self, point: int, hidden: Tensor, rope: Rope | None) -> dict[int, InnerState]:
        """States of the sequences that have visual columns (slices: nothing is read back)."""
        videos, states = self.videos, {}
        for b, count in enumerate(self.region.counts):
            if not videos.n_visual[b]:
                continue
            mine = slice(hidden.shape[1] - count, None)
            states[b] = InnerState(
                point=point,
                layer=self.points[point].layer if point >= 0 else 0,
                n_layers=self.depth,
                hidden=hidden[b, mine],
                visual=videos.visual[b, mine].to(hidden.device),
                attention=None,
                frame=videos.frame[b, mine].to(hidden.device),
                patch=videos.patch[b, mine].to(hidden.device),
                entered=videos.entered[b],
                uncompressed=videos.uncompressed[b],
                memory=videos.memory[b],
                n_visual=videos.n_visual[b],
                n_tokens=videos.n_tokens[b],
                rotary=None if rope is None else (rope[0][b, mine], rope[1][b, mine]),
            )
        return states
