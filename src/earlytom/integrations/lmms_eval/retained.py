"""What a run kept, added up over its calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from earlytom.report import Report


@dataclass
class Retained:
    """Totals over calls; times are wall-clock seconds without the decoding of video files.

    Attributes:
        requests: prompts.
        unreadable: prompts that got no answer, because a video could not be read.
        seconds: of all calls, preprocessing included.
        new_tokens: generated tokens.
        first_token_seconds: sum of the times to the first token that were measured.
        first_tokens: how many were (prompts alone in their batch, no beams).
        videos: videos.
        frames_in: frames given to the vision encoder.
        frames_out: frames left behind it.
        tokens_in: visual tokens without compression, newline tokens excluded.
        tokens_out: visual tokens that entered the language model.
        layer_tokens: the same, averaged over its layers.
    """

    requests: int = 0
    unreadable: int = 0
    seconds: float = 0.0
    new_tokens: int = 0
    first_token_seconds: float = 0.0
    first_tokens: int = 0
    videos: int = 0
    frames_in: int = 0
    frames_out: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    layer_tokens: float = 0.0

    def add_call(self, requests: int, seconds: float, first: float | None, new_tokens: int) -> None:
        """Add one call of the model."""
        self.requests += requests
        self.seconds += seconds
        self.new_tokens += new_tokens
        if first is not None:
            self.first_token_seconds += first
            self.first_tokens += 1

    def add_full(self, frames: Sequence[int], tokens_per_frame: int) -> None:
        """Add videos that were not compressed."""
        self.videos += len(frames)
        self.frames_in += sum(frames)
        self.frames_out += sum(frames)
        self.tokens_in += sum(frames) * tokens_per_frame
        self.tokens_out += sum(frames) * tokens_per_frame
        self.layer_tokens += sum(frames) * tokens_per_frame

    def add_report(self, report: Report) -> None:
        """Add the compressed videos of one call."""
        self.videos += len(report.videos)
        self.frames_in += sum(v.frames_in for v in report.videos)
        self.frames_out += sum(v.frames_out for v in report.videos)
        self.tokens_in += report.tokens_in
        self.tokens_out += report.tokens_out
        self.layer_tokens += report.llm_retention * report.tokens_in

    def metrics(self) -> dict[str, float]:
        """Return means for lmms-eval's ``throughput`` record; it writes ``avg_`` in front."""
        found: dict[str, float] = {"unreadable": self.unreadable} if self.unreadable else {}
        if self.first_tokens:
            found["time_to_first_token"] = self.first_token_seconds / self.first_tokens
        if self.videos:
            found["retention"] = self.tokens_out / self.tokens_in
            found["llm_retention"] = self.layer_tokens / self.tokens_in
            for name in ("frames_in", "frames_out", "tokens_in", "tokens_out"):
                found[f"{name}_per_video"] = getattr(self, name) / self.videos
        return found
