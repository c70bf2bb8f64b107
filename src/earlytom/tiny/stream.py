"""Training data drawn ahead of time in worker processes, reproducible by step number."""

from __future__ import annotations

import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator
from typing import Any

from earlytom.errors import EarlyTomError

Draw = Callable[[int], Any]


def _work(draw: Draw, first: int, last: int, stride: int, out: Any) -> None:
    """Draw items ``first, first + stride, ...``; the parent handles interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    for step in range(first, last, stride):
        item = draw(step)
        while True:
            try:
                out.put(item, timeout=5)
                break
            except queue.Full:
                if parent is not None and not parent.is_alive():
                    out.cancel_join_thread()
                    return


def stream(draw: Draw, first: int, last: int, workers: int = 1) -> Iterator[Any]:
    """Yield ``draw(first) .. draw(last - 1)`` in order.

    ``draw`` must be picklable and depend on its step only; the items are then the same for any
    number of workers.  ``workers=0`` draws in this process.
    """
    if workers == 0:
        yield from (draw(step) for step in range(first, last))
        return
    context = multiprocessing.get_context("spawn")
    lanes = [context.Queue(6) for _ in range(workers)]
    processes = [
        context.Process(target=_work, args=(draw, first + i, last, workers, lane), daemon=True)
        for i, lane in enumerate(lanes)
    ]
    for process in processes:
        process.start()
    try:
        for step in range(first, last):
            lane = (step - first) % workers
            yield _take(lanes[lane], processes[lane])
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(5)


def _take(lane: Any, process: Any) -> Any:
    """Next item of a lane; an error instead of an endless wait when its worker has died."""
    while True:
        try:
            return lane.get(timeout=5)
        except queue.Empty:
            if not process.is_alive():
                raise EarlyTomError(
                    f"a data worker stopped with exit code {process.exitcode}"
                ) from None
