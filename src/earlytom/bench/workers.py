"""Clips spread over processes of one thread each."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earlytom.bench.answering import Examiner
from earlytom.bench.records import Outcome
from earlytom.bench.suite import SuiteClip
from earlytom.errors import EarlyTomError, ResultError
from earlytom.method import Method


@dataclass(frozen=True)
class Job:
    """One clip: which methods to run on it.

    Attributes:
        clip: the clip.
        runs: fingerprint and method (None: the full model) of every run.
        timed: whether plain calls are timed as well.
    """

    clip: SuiteClip
    runs: tuple[tuple[str, Method | None], ...]
    timed: bool = False


@dataclass(frozen=True)
class Done:
    """What came of a job: outcomes by fingerprint, and for runs that failed, why.

    ``refused`` are errors that methods raise on purpose, ``broken`` all others.
    """

    clip: int
    outcomes: dict[str, Outcome]
    refused: dict[str, str]
    broken: dict[str, str]


class Bench:
    """A loaded model that does jobs.

    Args:
        folder: of the model.
        threads: CPU threads of this process.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        import torch

        torch.set_num_threads(threads)
        self.model = load_model(folder)
        self.examiner = Examiner(self.model)

    def do(self, job: Job) -> Done:
        """Run all methods of a job on its clip, timed calls first (memory is empty then)."""
        examiner, done = self.examiner, Done(job.clip.number, {}, {}, {})
        examiner.open(job.clip)
        times: dict[str, tuple[float, float, float]] = {}
        with examiner.replay:
            for timing in (True, False) if job.timed else (False,):
                for name, method in job.runs:
                    if name in done.refused or name in done.broken:
                        continue
                    try:
                        if timing:
                            times[name] = examiner.time(method)
                        else:
                            done.outcomes[name] = examiner.run(method, times.get(name))
                    except EarlyTomError as e:
                        done.refused[name] = str(e)
                    except Exception as e:  # one broken method must not end the others
                        done.broken[name] = f"{type(e).__name__}: {e}"
        return done


def load_model(folder: Path) -> Any:
    """Load a model folder for evaluation, in the dtype it was saved in."""
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


def run_jobs(folder: Path, jobs: Iterable[Job], workers: int) -> Iterator[Done]:
    """Do jobs in ``workers`` processes, in this process if it is one; in the order they finish.

    ``jobs`` is read as it is needed, so what is left out of later jobs can depend on earlier ones.

    Raises:
        ResultError: a process died.
    """
    if workers == 1:
        bench = Bench(folder)
        for job in jobs:
            yield bench.do(job)
        return
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start, (folder,))
    waiting: set[Future[Done]] = set()
    queue = iter(jobs)
    try:
        while True:
            while len(waiting) <= workers and (following := next(queue, None)) is not None:
                waiting.add(pool.submit(_do, following))
            if not waiting:
                break
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
        pool.shutdown()
    except BaseException as e:
        for child in multiprocessing.active_children():
            if child not in others:
                child.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(e, BrokenProcessPool):
            raise ResultError(f"a worker process died: {e}") from e
        raise


_BENCH: list[Bench] = []


def _start(folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _BENCH.append(Bench(folder))


def _do(job: Job) -> Done:
    return _BENCH[0].do(job)
