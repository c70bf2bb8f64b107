"""Visual tokens of a finished part of a stream, and the bounded memory that holds them."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

from torch import Tensor

from earlytom.checks import check_choice, check_count
from earlytom.ops.diversity import diverse_tokens
from earlytom.ops.select import mask_index, top_of_video

EVICTIONS = ("thin", "drop")
_LOW = (3, 4)  # an eviction leaves this share of the limit, so that the next one is not near


@dataclass(frozen=True, eq=False)
class Part:
    """Tokens of one segment or window.

    Attributes:
        start: its first input frame.
        stop: the input frame behind its last one.
        frames: frames left behind the vision encoder.
        features: ``[k, dim]`` what the language model gets.
        cells: ``[k]`` int64 ascending, ``input frame * tokens per frame + patch`` of every token.
        bias: ``[k]`` float32 log weights, or None for 0.
        score: ``[k]`` float32 attention received, by which the part is thinned, or None.
        halvings: how often it was thinned.
    """

    start: int
    stop: int
    frames: int
    features: Tensor
    cells: Tensor
    bias: Tensor | None = None
    score: Tensor | None = None
    halvings: int = 0

    def __len__(self) -> int:
        return int(self.cells.numel())

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        found = (self.features, self.cells, self.bias, self.score)
        return [x for x in found if x is not None]

    def thinned(self, count: int) -> Part:
        """Return the part with ``count`` of its tokens.

        Those that received most attention stay; where none was measured, those that differ most
        from each other (farthest-point selection).
        """
        if self.score is not None:
            keep = mask_index(top_of_video(self.score[None], count), count)
        else:
            keep = diverse_tokens(self.features[None], count)
        return replace(
            self,
            features=self.features[keep],
            cells=self.cells[keep],
            bias=None if self.bias is None else self.bias[keep],
            score=None if self.score is None else self.score[keep],
        )


@dataclass(frozen=True)
class TokenMemory:
    """The parts that are remembered, oldest first. Changes make a new memory.

    Args:
        max_tokens: never more tokens than this.
        evict: what happens above it, until three quarters of it are left. ``thin``: the oldest of
            the least thinned parts loses half of its tokens (its last one, too), again and again,
            so that older parts are never thinned less often than newer ones. ``drop``: the oldest
            parts go; the newest one is thinned if it alone is too large.
        max_span: input frames between the oldest part and now whose places the model knows; None:
            no limit.
        squeezes: what happens beyond it: places are divided by 2, 4, 8, ...; otherwise parts that
            begin earlier go, down to three quarters of the span; the newest one stays.

    Attributes:
        parts: what is remembered.
        base: input frame at which positions begin: 0 as long as no part at the front was dropped.
        scale: what places behind ``base`` are divided by.
        evictions: how often room had to be made.
        evicted: tokens that were lost by it.

    Raises:
        ConfigError: a value out of range.
    """

    max_tokens: int
    evict: str = "thin"
    max_span: int | None = None
    squeezes: bool = False
    parts: tuple[Part, ...] = ()
    base: int = 0
    scale: int = 1
    evictions: int = 0
    evicted: int = 0

    def __post_init__(self) -> None:
        check_count("max_tokens", self.max_tokens)
        check_choice("evict", self.evict, EVICTIONS)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def add(self, new: list[Part], frames: int) -> TokenMemory:
        """Return the memory with the ``new`` parts, after ``frames`` input frames in all."""
        parts = [*self.parts, *new]
        before, base = sum(map(len, parts)), self.base
        limit = None if self.squeezes else self.max_span
        if limit is not None and parts and frames - base > limit:
            oldest = min(frames - limit * _LOW[0] // _LOW[1], parts[-1].stop)
            parts, base = [p for p in parts if p.start >= oldest] or parts[-1:], oldest
        if sum(map(len, parts)) > self.max_tokens:
            low = max(1, self.max_tokens * _LOW[0] // _LOW[1])
            parts = _thin(parts, low) if self.evict == "thin" else _drop(parts, low)
            if sum(map(len, parts)) > self.max_tokens:  # only the newest is left
                parts = [parts[0].thinned(low)]
        lost = before - sum(map(len, parts))
        base, scale = parts[0].start if parts else base, 1
        while self.squeezes and self.max_span and frames - base > self.max_span * scale:
            scale *= 2  # the cache is built anew, so seldom
        return replace(
            self,
            parts=tuple(parts),
            base=base,
            scale=scale,
            evictions=self.evictions + (lost > 0),
            evicted=self.evicted + lost,
        )


def _drop(parts: list[Part], low: int) -> list[Part]:
    total, first = sum(map(len, parts)), 0
    while total > low and first < len(parts) - 1:
        total -= len(parts[first])
        first += 1
    return parts[first:]


def _thin(parts: list[Part], low: int) -> list[Part]:
    total = sum(map(len, parts))
    sizes, halvings = [len(p) for p in parts], [p.halvings for p in parts]
    order = [(n, i) for i, n in enumerate(halvings)]
    heapq.heapify(order)
    while total > low:
        _, i = heapq.heappop(order)
        total -= sizes[i] - sizes[i] // 2
        sizes[i] //= 2
        halvings[i] += 1
        if sizes[i]:
            heapq.heappush(order, (halvings[i], i))
    # the tensors are touched once, however often a part was halved
    changed = [
        p if len(p) == size else replace(p.thinned(size), halvings=n) if size else None
        for p, size, n in zip(parts, sizes, halvings, strict=True)
    ]
    return [p for p in changed if p is not None]
