"""Frames as they come: segment and merge incrementally, answer at any time (docs/streaming.md)."""

from earlytom.stream.feed import Feed, FeedFrame
from earlytom.stream.report import StreamAnswer, StreamReport
from earlytom.stream.segmentwise import CausalEarlyTom, causal
from earlytom.stream.session import Stream

__all__ = [
    "CausalEarlyTom",
    "Feed",
    "FeedFrame",
    "Stream",
    "StreamAnswer",
    "StreamReport",
    "causal",
]
