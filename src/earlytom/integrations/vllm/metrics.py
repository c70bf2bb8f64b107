"""Counters of what was compressed, for Prometheus.

They count where videos are encoded: in the worker (in rank 0 of several). vLLM's ``/metrics`` shows
them if its processes share a folder, which is prometheus_client's own way: set
``PROMETHEUS_MULTIPROC_DIR`` to an empty folder before the server starts. In one process
(``VLLM_ENABLE_V1_MULTIPROCESSING=0``) they are in the usual registry.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earlytom.integrations.vllm.item import VideoItem

PREFIX = "earlytom_"
COUNTERS = {
    "videos": "Videos encoded with compression",
    "visual_tokens_before": "Visual tokens of these videos without compression",
    "visual_tokens_after": "Visual tokens that entered the language model",
    "frames_before": "Frames given to the vision encoder",
    "frames_after": "Frames left behind it",
    "failed_videos": "Videos on which the method failed; they kept evenly spread tokens",
}
ENCODE_SECONDS = "encode_seconds"


def encoded(method: str, item: VideoItem, frames_after: int, seconds: float) -> None:
    """Count one video.

    Args:
        method: its name.
        item: the video.
        frames_after: frames left behind the encoder.
        seconds: wall time of encoding and selection (on a GPU, until the work is queued; decisions
            wait for the device).
    """
    found = _metrics()
    for name, value in {
        "videos": 1,
        "visual_tokens_before": item.frames * item.size,
        "visual_tokens_after": item.tokens,
        "frames_before": item.frames,
        "frames_after": frames_after,
    }.items():
        found[name].labels(method).inc(value)
    found[ENCODE_SECONDS].labels(method).observe(seconds)


def failed(method: str) -> None:
    """Count one video on which ``method`` failed."""
    _metrics()["failed_videos"].labels(method).inc()


def totals() -> dict[str, float]:
    """Return the counters of this process, summed over methods."""
    found = {name: 0.0 for name in (*COUNTERS, ENCODE_SECONDS)}
    for name, metric in _metrics().items():
        for family in metric.collect():
            wanted = ("_sum",) if name == ENCODE_SECONDS else ("_total",)
            found[name] += sum(s.value for s in family.samples if s.name.endswith(wanted))
    return found


@cache
def _metrics() -> dict[str, Any]:
    from prometheus_client import Counter, Histogram

    found: dict[str, Any] = {
        name: Counter(PREFIX + name, text, ["method"]) for name, text in COUNTERS.items()
    }
    text = "Seconds to encode a video and select its tokens"
    found[ENCODE_SECONDS] = Histogram(PREFIX + ENCODE_SECONDS, text, ["method"])
    return found
