"""What the engine decided on its way, noted only while somebody watches.

The report of a call (:mod:`earlytom.report`) is always there and small. Things that only a picture
needs (similarities, fresh patches, features in front of a selection) are noted here instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

START = "video"  # the event that opens a video call


@dataclass
class Trace:
    """Events in the order in which they happened: ``(kind, values)``.

    Tensors are kept as they are, on their device: whoever reads them waits for the device. Kinds
    and values are listed in ``docs/inspect.md``.
    """

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def last_call(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the events of the last video call, without the one that opened it."""
        starts = [i for i, (kind, _) in enumerate(self.events) if kind == START]
        return self.events[starts[-1] + 1 :] if starts else []


_WATCH: ContextVar[Trace | None] = ContextVar("earlytom_trace", default=None)


@contextlib.contextmanager
def tracing() -> Iterator[Trace]:
    """Watch the calls inside."""
    token = _WATCH.set(trace := Trace())
    try:
        yield trace
    finally:
        _WATCH.reset(token)


def note(kind: str, **values: Any) -> None:
    """Add an event; without a watcher nothing happens but a look at a context variable."""
    trace = None if torch.compiler.is_compiling() else _WATCH.get()
    if trace is not None:
        trace.events.append((kind, values))
