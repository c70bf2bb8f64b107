"""Frames on their way through the vision encoder: values that are joined and split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from earlytom.ops.plan import MergePlan
from earlytom.stages import VideoState


@dataclass(frozen=True, eq=False)
class Frames:
    """Consecutive frames of a stream at one place of the encoder, or behind it.

    Attributes:
        first: for every frame, the input frame whose place it keeps.
        count: for every frame, how many input frames it stands for.
        hidden: ``[n, patches, dim]`` states of the encoder; empty ``[n, 0]`` once not needed.
        received: ``[n, patches]`` (behind the projector: tokens) float32 received attention.
        features: ``[n, tokens, dim]`` behind projector and pooling, or None.
    """

    first: tuple[int, ...]
    count: tuple[int, ...]
    hidden: Tensor
    received: Tensor | None = None
    features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.first)

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        return [x for x in (self.hidden, self.received, self.features) if x is not None]

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> Frames:
        """Return the frames with every tensor changed."""
        return replace(
            self,
            hidden=change(self.hidden),
            received=None if self.received is None else change(self.received),
            features=None if self.features is None else change(self.features),
        )

    def part(self, start: int, stop: int) -> Frames:
        """Return frames ``start`` to ``stop - 1``, in memory of their own."""
        # a view would keep all frames alive
        cut = self.with_tensors(lambda x: x[start:stop].clone())
        return replace(cut, first=self.first[start:stop], count=self.count[start:stop])

    def merged(self, plan: MergePlan) -> Frames:
        """Return the frames that ``plan`` makes of them."""
        state = VideoState(len(self), self.first, self.count, received=self.received)
        state.apply(plan, 0)
        return Frames(state.first, state.count, plan.apply(self.hidden), state.received)


def joined(held: Frames | None, new: Frames | None) -> Frames | None:
    """Return ``held`` frames and the ``new`` ones behind them; None where there is none at all."""
    if held is None or new is None:
        return new if held is None else held

    def cat(name: str) -> Tensor | None:
        pair = [getattr(held, name), getattr(new, name)]
        return None if pair[0] is None else torch.cat(pair)

    hidden = torch.cat([held.hidden, new.hidden])
    first, count = held.first + new.first, held.count + new.count
    return Frames(first, count, hidden, cat("received"), cat("features"))


def split(frames: Frames, stop: int) -> tuple[Frames | None, Frames | None]:
    """Return the frames before ``stop`` and the others; None for no frame."""
    n = len(frames)
    if stop in (0, n):
        return (frames, None) if stop else (None, frames)
    return frames.part(0, stop), frames.part(stop, n)
