"""What one call of a compressed model did: frames, tokens and where every survivor came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from earlytom.ops.plan import MergePlan
from earlytom.stages import VideoState


@dataclass(frozen=True)
class VideoReport:
    """One video of the call.

    Attributes:
        frames_in: frames given to the vision encoder.
        merge_layers: encoder layers after which frames were merged, -1 for the patch embeddings.
        frames_per_merge_point: frames left after each of those layers.
        tokens_in: visual tokens that the uncompressed model would feed the language model,
            newline tokens excluded.
        tokens_out: visual tokens that entered it, newline tokens excluded.
        tokens_per_frame: tokens of one frame after pooling.
        plans: the merge plan of every merge point.
        first: for every frame left, the input frame whose place it keeps.
        count: for every frame left, how many input frames it stands for.
        slots: for every frame left, the frame slot it occupies for the language model.
        index: ``[tokens_out]`` int64, every token as ``frame left * tokens_per_frame + patch``, or
            None if all tokens of the frames left were kept.
        received: ``[frames left, tokens]`` received attention that selection saw, or None.
        patch_reductions: (encoder layer, patches per frame left) of every reduction inside the
            encoder.
        reuse: (encoder layer, patches, queries): from this layer on only so many patches of the
            video were computed, with so many attention queries (padding included); None: all were.
    """

    frames_in: int
    merge_layers: tuple[int, ...]
    frames_per_merge_point: tuple[int, ...]
    tokens_in: int
    tokens_out: int
    tokens_per_frame: int
    plans: tuple[MergePlan, ...]
    first: tuple[int, ...]
    count: tuple[int, ...]
    slots: tuple[int, ...]
    index: Tensor | None
    received: Tensor | None
    patch_reductions: tuple[tuple[int, int], ...] = ()
    reuse: tuple[int, int, int] | None = None

    @property
    def frames_out(self) -> int:
        """Frames left behind the vision encoder."""
        return len(self.first)

    def encoded_patches(self, per_frame: int) -> int:
        """Return how many patches the last layer of the encoder computed.

        Args:
            per_frame: patches of a frame at the encoder's input.
        """
        if self.reuse is not None:
            return self.reuse[1]
        return self.frames_out * (self.patch_reductions or ((0, per_frame),))[-1][1]

    def provenance(self) -> list[tuple[int, int, int]]:
        """Return ``(input frame, patch, input frames it stands for)`` of every token, in order."""
        s = self.tokens_per_frame
        rows = range(self.frames_out * s) if self.index is None else self.index.tolist()
        return [(self.first[i // s], i % s, self.count[i // s]) for i in rows]

    def to_dict(self) -> dict[str, Any]:
        """Return the counts (no tensors) as JSON-ready data."""
        return {
            "frames_in": self.frames_in,
            "frames_out": self.frames_out,
            "merge_layers": list(self.merge_layers),
            "frames_per_merge_point": list(self.frames_per_merge_point),
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "patch_reductions": [list(p) for p in self.patch_reductions],
            "reuse": None if self.reuse is None else list(self.reuse),
            "frame_members": [list(m) for m in self._members()],
        }

    def _members(self) -> list[tuple[int, ...]]:
        if not self.plans:
            return [(f,) for f in range(self.frames_in)]
        plan = self.plans[0]
        for nxt in self.plans[1:]:
            plan = plan.then(nxt)
        return list(plan.members)


@dataclass
class Report:
    """The last call of a compressed model; see :func:`earlytom.last_report`.

    Attributes:
        method: name of the method.
        retention_ratio: the ratio asked for.
        positions: how the survivors were placed: ``renumber``, ``keep`` or ``respace``; ``squeeze``
            if a video was longer than the model's context and ``auto`` fitted it in.
        videos: one entry per video, in the order of ``pixel_values_videos``.
        prompt_columns: (before, after) columns of the prompt for the language model, or None
            before prefill.
        inner: (layer, columns before, columns after) of every point of stage III passed.
        layer_tokens: visual tokens with which every decoder layer was entered, all sequences of the
            batch together, newline tokens not counted; empty without stage III.
        layer_total: what the uncompressed model would have fed, counted alike.
        images: (tokens, tokens left) of every image, newline tokens not counted; empty unless
            ``images=True``. They are in no other number.
    """

    method: str
    retention_ratio: float
    positions: str
    videos: list[VideoReport] = field(default_factory=list)
    prompt_columns: tuple[int, int] | None = None
    inner: tuple[tuple[int, int, int], ...] = ()
    layer_tokens: tuple[int, ...] = ()
    layer_total: int = 0
    images: tuple[tuple[int, int], ...] = ()

    @property
    def tokens_in(self) -> int:
        """Visual tokens of all videos without compression."""
        return sum(v.tokens_in for v in self.videos)

    @property
    def tokens_out(self) -> int:
        """Visual tokens of all videos that entered the language model."""
        return sum(v.tokens_out for v in self.videos)

    @property
    def achieved_retention(self) -> float:
        """``tokens_out / tokens_in``; 1.0 for a call without video."""
        return self.tokens_out / self.tokens_in if self.tokens_in else 1.0

    @property
    def llm_retention(self) -> float:
        """Visual tokens of a decoder layer / those of the uncompressed model, layer average.

        Equals ``achieved_retention`` unless the method also acts inside the language model.
        """
        if not self.layer_tokens or not self.layer_total:
            return self.achieved_retention
        return sum(self.layer_tokens) / len(self.layer_tokens) / self.layer_total

    def to_dict(self) -> dict[str, Any]:
        """Return everything but tensors as JSON-ready data."""
        return {
            "method": self.method,
            "retention_ratio": self.retention_ratio,
            "achieved_retention": self.achieved_retention,
            "positions": self.positions,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "prompt_columns": self.prompt_columns,
            "inner": [list(p) for p in self.inner],
            "llm_retention": self.llm_retention,
            "videos": [v.to_dict() for v in self.videos],
            "images": [list(counts) for counts in self.images],
        }


def video_report(
    state: VideoState,
    tokens_per_frame: int,
    slots: tuple[int, ...],
    index: Tensor | None,
    received: Tensor | None,
    patch_reductions: tuple[tuple[int, int], ...] = (),
    reuse: tuple[int, int, int] | None = None,
) -> VideoReport:
    """Summarise one video after selection."""
    return VideoReport(
        frames_in=state.n_input,
        merge_layers=tuple(state.layers),
        frames_per_merge_point=tuple(p.n_output for p in state.plans),
        tokens_in=state.n_input * tokens_per_frame,
        tokens_out=state.n_frames * tokens_per_frame if index is None else index.numel(),
        tokens_per_frame=tokens_per_frame,
        plans=tuple(state.plans),
        first=state.first,
        count=state.count,
        slots=slots,
        index=index,
        received=received,
        patch_reductions=patch_reductions,
        reuse=reuse,
    )
