"""Reading an iterator in a background thread, a few items ahead of whoever uses them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)

DEPTH = 4


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class ReadAhead(Generic[T]):
    """Iterates over ``source`` in one background thread; use it once, as a context manager.

    ``with ReadAhead(source) as items: for item in items: ...`` gives the items of ``source`` in
    order and raises what ``source`` raises, at the same place. Leaving the ``with`` block for any
    reason (an error, Ctrl-C, ``break``) stops the thread in front of its next item, closes
    ``source`` in it and waits for it: nothing is left running.

    Args:
        source: the iterator; nobody else may use it. A generator is closed when reading ends.
        depth: at most this many items exist at a time (being made, waiting, and in the hands of
            the reader, who gives an item back by asking for the next one); >= 2 to overlap.

    Attributes:
        finished: ``perf_counter`` seconds at which ``source`` ended, None before.

    Raises:
        ValueError: ``depth`` < 1.
    """

    def __init__(self, source: Iterator[T], depth: int = DEPTH) -> None:
        if depth < 1:
            raise ValueError(f"depth must be >= 1, got {depth}")
        self.finished: float | None = None
        self._source = source
        self._free = threading.Semaphore(depth)
        self._queue: SimpleQueue[_Item[T] | _Failure | None] = SimpleQueue()
        self._stopped = False
        self._holds = self._over = False  # reader: has an item; has seen the end
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="earlytom-read", daemon=True)

    def __enter__(self) -> ReadAhead[T]:
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C right here: the thread, if there is one, ends by itself
            self._stopped = self._over = True
            self._free.release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                self._stopped = self._over = True
                self._free.release()
                # not join(): before Python 3.13 a join that Ctrl-C interrupts forgets the thread
                self._ended.wait()
                self._thread.join()
                break
            except KeyboardInterrupt as e:  # first let the thread end, then say so
                interrupt = e
        self._queue = SimpleQueue()  # lets go of what nobody asked for
        if interrupt is not None:
            try:
                raise interrupt
            finally:
                interrupt = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._over:
            raise StopIteration
        if self._holds:
            self._holds = False
            self._free.release()
        got = self._queue.get()
        if isinstance(got, _Item):
            self._holds = True
            return got.value
        self._over = True
        if got is None:
            raise StopIteration
        try:
            raise got.error
        finally:
            del got  # its traceback refers to this frame: no cycle may keep frames alive

    # ------------------------------------------------------------------ the thread
    def _run(self) -> None:
        try:
            while True:
                self._free.acquire()  # first the room, then the item
                if self._stopped:
                    break
                try:
                    self._queue.put(_Item(next(self._source)))
                except StopIteration:
                    self.finished = perf_counter()
                    self._queue.put(None)
                    break
                except BaseException as e:
                    self._queue.put(_Failure(e))
                    break
        finally:
            try:
                self._close()
            finally:
                self._ended.set()

    def _close(self) -> None:
        close = getattr(self._source, "close", None)
        if close is None:
            return
        try:
            close()
        except Exception as e:  # the reader has left already
            logger.warning("closing what was read ahead failed: %s", e)
