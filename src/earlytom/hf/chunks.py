"""A few frames at a time: how far the running module is, and what probes measure on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from earlytom.ops.tensors import slices
from earlytom.stages import VideoState

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """One chunk of a call of a module.

    Attributes:
        args: arguments of the module for this chunk.
        kwargs: likewise.
        rows: (start, end) of the chunk in what the module was given.
        dim: the dimension of these rows.
        videos: in packed towers, the frames of the chunk as videos of their own.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: tuple[int, int]
    dim: int = 0
    videos: tuple[VideoState, ...] = ()


class Joined:
    """The results of all chunks as one tensor, written as they come.

    Args:
        rows: rows of the module's input.
        dim: the dimension that was cut.
        into: tensor to write into, if the results have its form; None: a new one.
    """

    def __init__(self, rows: int, dim: int = 0, into: Tensor | None = None) -> None:
        self._rows, self._dim = rows, dim
        self._out = into
        self._parts: list[Tensor] = []  # with gradients, which a buffer would make slow
        self._end = 0

    def add(self, part: Tensor, rows: int) -> None:
        """Take over the result of the next ``rows`` rows."""
        if part.requires_grad:
            self._parts.append(part)
            return
        size = part.shape[self._dim]
        if self._end == 0:
            shape = list(part.shape)
            shape[self._dim] = size * self._rows // rows
            given = self._out
            if given is None or given.shape != torch.Size(shape) or given.dtype != part.dtype:
                self._out = part.new_empty(shape)
        assert self._out is not None
        self._out.narrow(self._dim, self._end, size).copy_(part)
        self._end += size

    def whole(self) -> Tensor:
        """Return the result of all rows."""
        if self._parts:
            return torch.cat(self._parts, self._dim)
        assert self._out is not None
        return self._out


class Chunks:
    """How many frames the vision encoder takes at a time.

    Args:
        frames: of a chunk; None: all of them at once.

    Attributes:
        pooled: the projector has pooled its chunks already.
        videos: in packed towers, the frames of the chunk at hand; empty outside of chunks.
    """

    def __init__(self, frames: int | None = None) -> None:
        self.frames = frames
        self.pooled = False
        self.videos: tuple[VideoState, ...] = ()
        self._rows = 0  # of all chunks, 0 outside of them
        self._more = False  # whether further chunks follow
        self._measured: dict[str, list[Joined | None]] = {}

    def reset(self) -> None:
        """Forget what a call left behind."""
        self.pooled, self.videos, self._rows = False, (), 0
        self._measured.clear()

    def of(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the chunks of ``x [frames, ...]``."""
        return iter(x.split(self.frames or max(1, len(x))))

    def run(self, pieces: Sequence[T], rows: int, work: Callable[[T], None]) -> None:
        """Call ``work`` for every chunk; what probes measure meanwhile is gathered.

        Args:
            pieces: the chunks.
            rows: rows of all of them.
            work: called with one after another.
        """
        self._rows = rows
        try:
            for number, piece in enumerate(pieces, start=1):
                self._more = number < len(pieces)
                work(piece)
        finally:
            self.videos, self._rows = (), 0
            self._measured.clear()

    def gather(self, name: str, *signals: Tensor | None) -> tuple[Any, ...] | None:
        """Join what a probe measures of every chunk.

        Args:
            name: of the probe.
            signals: ``[rows of the chunk, ...]`` each, or None.

        Returns:
            The signals of all rows; None as long as chunks are missing.
        """
        if not self._rows:
            return signals
        if name not in self._measured:
            self._measured[name] = [None if s is None else Joined(self._rows) for s in signals]
        for joined, signal in zip(self._measured[name], signals, strict=True):
            if joined is not None and signal is not None:
                joined.add(signal, len(signal))
        if self._more:
            return None
        whole = self._measured.pop(name)
        return tuple(None if joined is None else joined.whole() for joined in whole)


def lead(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the first tensor among the arguments of a module: states or pixels."""
    found: Tensor = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    return found


def cut_rows(args: tuple[Any, ...], kwargs: dict[str, Any], step: int) -> list[Piece]:
    """Cut what has a row for every frame (masks included) into ``step`` frames each."""
    n = len(lead(args, kwargs))

    def part(x: Any, a: int, b: int) -> Any:
        return x[a:b] if isinstance(x, Tensor) and x.dim() and x.shape[0] == n else x

    return [
        Piece(
            tuple(part(x, a, b) for x in args),
            {k: part(x, a, b) for k, x in kwargs.items()},
            (a, b),
        )
        for a, b in slices(n, step)
    ]


def cut_tokens(args: tuple[Any, ...], kwargs: dict[str, Any], step: int) -> list[Piece]:
    """Cut the only argument ``[1, tokens, dim]`` into ``step`` tokens each."""
    x = lead(args, kwargs)
    pieces = []
    for a, b in slices(x.shape[1], step):
        part = x[:, a:b]
        named = {k: part for k in kwargs}
        pieces.append(Piece(() if named else (part,), named, (a, b), dim=1))
    return pieces


def cut_videos(videos: Sequence[VideoState], step: int) -> list[list[VideoState]]:
    """Cut the frames present of some videos into ``step`` each, as videos of their own."""
    chunks: list[list[VideoState]] = []
    room = 0
    for video in videos:
        left = video.n_frames
        while left:
            if not room:
                chunks.append([])
                room = step
            taken = min(room, left)
            chunks[-1].append(VideoState.start(taken, video.n_layers, video.grid))
            left, room = left - taken, room - taken
    return chunks
