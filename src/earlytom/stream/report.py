"""What a stream reports: counts, and the time that frames and answers took."""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

_KEPT = 4096  # latencies that percentiles are taken from: the last ones


@dataclass(frozen=True)
class Latency:
    """Seconds of wall clock, over the last 4096 measured.

    Attributes:
        count: how many were measured since the stream began.
        median: middle value.
        p95: 95 % are not above it.
        longest: of all that are looked at.
    """

    count: int
    median: float
    p95: float
    longest: float


class LatencyLog:
    """Remembers the last latencies."""

    def __init__(self) -> None:
        self.count = 0
        self._last: deque[float] = deque(maxlen=_KEPT)

    def add(self, seconds: float, times: int = 1) -> None:
        """Note a latency, ``times`` times."""
        self.count += times
        self._last.extend([seconds] * min(times, _KEPT))

    def summary(self) -> Latency | None:
        """Return the summary, None if nothing was measured."""
        if not self._last:
            return None
        median, p95, longest = np.percentile(list(self._last), [50, 95, 100]).tolist()
        return Latency(self.count, median, p95, longest)


@dataclass(frozen=True)
class StreamReport:
    """A stream at one moment; see :meth:`earlytom.Stream.report`.

    Attributes:
        frames: frames pushed.
        finished_frames: of these, frames whose tokens are decided.
        seconds: time stamp of the last frame minus that of the first one.
        parts: segments or windows that are remembered.
        memory_tokens: their visual tokens.
        max_tokens: their limit.
        kept_tokens: visual tokens of all finished parts before any was evicted.
        retention: ``kept_tokens`` / those that the uncompressed model would feed for these frames;
            None before the first part is finished.
        evictions: how often the memory made room.
        evicted_tokens: tokens that this has cost.
        cache_columns: columns of the KV cache, text included.
        prefilled_columns: columns that the language model has computed, in all.
        state_bytes: of all tensors that are held: waiting frames, tokens, KV cache.
        push: latency of a pushed frame: from the call of ``push`` to its return, divided by the
            frames of the call. None before the first.
        first_token: from the call of ``ask`` to the first token of the answer.
    """

    frames: int
    finished_frames: int
    seconds: float
    parts: int
    memory_tokens: int
    max_tokens: int
    kept_tokens: int
    retention: float | None
    evictions: int
    evicted_tokens: int
    cache_columns: int
    prefilled_columns: int
    state_bytes: int
    push: Latency | None
    first_token: Latency | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class StreamAnswer:
    """An answer of a stream.

    Attributes:
        text: the answer, special tokens removed.
        token_ids: its token ids.
        time: time stamp of the last frame that it knows.
        frames: frames pushed until then.
        tokens: visual tokens that it was given.
        open_tokens: of these, tokens of the part that is still open.
        first_token: seconds from the call to the first token.
        total: seconds from the call to the end of the answer.
    """

    text: str
    token_ids: list[int]
    time: float
    frames: int
    tokens: int
    open_tokens: int
    first_token: float
    total: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        return dataclasses.asdict(self)
