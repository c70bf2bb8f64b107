"""Peak memory: resident size of the process, and tensors alive during a call."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Start the peak of the resident size anew, where the system can (Linux)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_rss() -> float:
    """Largest resident size since then (elsewhere: of the process), in MiB."""
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1 << 20 if sys.platform == "darwin" else 1024)
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def peak_of_allocations(profile: Any) -> float:
    """Most that was allocated at a time during a profile with ``profile_memory``, in MiB.

    Counts what came on top of the tensors that were there before, temporaries inside operators
    included; the allocator's own reserve is not counted.
    """
    events: Iterable[Any] = profile.profiler.kineto_results.events()
    moments = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    alive = peak = 0
    for _, change in moments:
        alive += change
        peak = max(peak, alive)
    return peak / (1 << 20)
