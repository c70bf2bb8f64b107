"""Moments in time, on the host or in a CUDA stream, and spans of work that someone may watch."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from time import perf_counter
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])


class Mark:
    """A moment: on CUDA an event in the current stream (no waiting), elsewhere the host clock."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record(torch.cuda.current_stream(device))
        self._time = perf_counter()

    def since(self, earlier: Mark) -> float:
        """Return the seconds from ``earlier``; on CUDA this waits until the moment is reached."""
        if self._event is None or earlier._event is None:
            return self._time - earlier._time
        self._event.synchronize()
        return float(earlier._event.elapsed_time(self._event)) / 1000


class SpanClock:
    """Adds up the time of the engine's own work (what an uncompressed model does not do).

    Use as ``with SpanClock(device).on() as spans: model.generate(...)``, then :meth:`seconds`.
    Without one a span costs nothing but a look at a context variable.

    Args:
        device: whose time is taken.
        nvtx: also open an NVTX range for every span (CUDA builds of torch).
    """

    def __init__(self, device: torch.device, nvtx: bool = False) -> None:
        self.device = device
        self.nvtx = nvtx
        self._marks: dict[str, list[tuple[Mark, Mark]]] = defaultdict(list)
        self._inside = False

    @contextlib.contextmanager
    def on(self) -> Iterator[SpanClock]:
        """Watch the spans that open inside."""
        token = _WATCH.set(self)
        try:
            yield self
        finally:
            _WATCH.reset(token)

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Take the time of what happens inside, as part of ``name`` or of the span around it."""
        if self._inside:
            yield
            return
        self._inside = True
        begin = Mark(self.device)
        try:
            with nvtx_range(f"earlytom.{name}") if self.nvtx else contextlib.nullcontext():
                yield
        finally:
            self._inside = False
        self._marks[name].append((begin, Mark(self.device)))

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every span; waits for the device."""
        return {n: sum(b.since(a) for a, b in pairs) for n, pairs in self._marks.items()}


_WATCH: ContextVar[SpanClock | None] = ContextVar("earlytom_spans", default=None)


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Mark work that only a compressed model does. A span inside another one is part of it."""
    watch = None if torch.compiler.is_compiling() else _WATCH.get()
    with contextlib.nullcontext() if watch is None else watch.measure(name):
        yield


def spanned(name: str) -> Callable[[F], F]:
    """Make every call of a function a :func:`span`."""

    def wrap(function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or _WATCH.get() is None:
                return function(*args, **kwargs)
            with span(name):
                return function(*args, **kwargs)

        return run  # type: ignore[return-value]

    return wrap


@contextlib.contextmanager
def nvtx_range(name: str) -> Iterator[None]:
    """Open an NVTX range, for Nsight; nothing happens without CUDA."""
    if not torch.cuda.is_available():
        yield
        return
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()
