"""Vision side of the engine: merge frames between encoder layers, select tokens behind them.

Behind the projector every video gets its original number of rows back. Rows that must not reach
the language model are NaN: they need no side channel, and survive dtype and device moves, scatter,
beam expansion and ahead-of-time encoding by ``generate``. The prompt side removes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import UnsupportedModelError, VideoError
from earlytom.method import Method
from earlytom.models.base import Adapter
from earlytom.ops.received import received_attention
from earlytom.report import VideoReport, video_report
from earlytom.stages import TokenSelection, VideoFeatures, VideoState


@dataclass
class VideoCall:
    """State of one call of ``get_video_features``; image calls have none."""

    videos: list[VideoState]
    next_point: int = 0
    slots: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def frames(self) -> list[int]:
        """Frames present of every video."""
        return [v.n_frames for v in self.videos]

    @property
    def merged(self) -> bool:
        """Whether any frame is gone."""
        return any(v.n_frames != v.n_input for v in self.videos)


class VisionSide:
    """Runs stage I and stage II of ``method`` on the vision tower of ``adapter``."""

    def __init__(self, adapter: Adapter, method: Method) -> None:
        self.adapter = adapter
        self.method = method
        self.points = method.merge_points(adapter.usable_layers)
        self.score_layer = method.score_layer(adapter.usable_layers)
        self.call: VideoCall | None = None
        self.reports: list[VideoReport] = []

    # ------------------------------------------------------------------ encoder
    def before_layer(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of encoder layer ``index``: merging after layer ``index - 1`` happens here."""
        if self.call is None or not self._due(index - 1):
            return None
        if "hidden_states" in kwargs:
            return args, {**kwargs, "hidden_states": self._merge(kwargs["hidden_states"])}
        return (self._merge(args[0]), *args[1:]), kwargs

    def capture(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, module: nn.Module
    ) -> None:
        """Probe sink of the score layer: attention received per patch of every frame."""
        if self.call is None:
            return
        with torch.no_grad():
            received = received_attention(query, key, scaling, mask)
        for state, part in zip(self.call.videos, received.split(self.call.frames), strict=True):
            state.received = part

    def _due(self, layer: int) -> bool:
        assert self.call is not None
        n = self.call.next_point
        return n < len(self.points) and self.points[n] == layer

    def _merge(self, hidden: Tensor) -> Tensor:
        call = self.call
        assert call is not None
        point, layer = call.next_point, self.points[call.next_point]
        call.next_point += 1
        merged = []
        for x, state in zip(
            self.adapter.split_frames(hidden, call.frames), call.videos, strict=True
        ):
            plan = self.method.merge_frames(x.detach(), state, point, self.adapter.tokens_per_frame)
            if plan is not None:
                x = plan.apply(x)
                state.apply(plan, layer)
            self.method.finish_frames(x.detach(), state, point)
            merged.append(x)
        return self.adapter.join_frames(merged)

    # ------------------------------------------------------------------ projector
    def before_projector(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Merge after the very last layer, if asked for."""
        if self.call is None:
            return None
        if self._due(self.adapter.usable_layers - 1):
            args = (self._merge(args[0]), *args[1:])
        if args[0].shape[0] != sum(self.call.frames):
            raise UnsupportedModelError(
                f"the projector got {args[0].shape[0]} frames where {sum(self.call.frames)} were "
                "expected; vision_feature_layer of this call lies in front of a merge layer"
            )
        return args, kwargs

    def after_projector(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Spread the frames left over their slots; all other frames become NaN."""
        call = self.call
        if call is None:
            return None
        call.slots = [frame_slots(v, self.method.resolved_positions()) for v in call.videos]
        if not call.merged:
            return None
        rows, start = [], 0
        for state, slots in zip(call.videos, call.slots, strict=True):
            rows += [start + s for s in slots]
            start += state.n_input
        blank = output.new_full((start, *output.shape[1:]), float("nan"))
        return blank.index_copy(0, torch.tensor(rows, device=output.device), output)

    # ------------------------------------------------------------------ whole call
    def run(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the model's own ``get_video_features`` and select tokens on its result."""
        arguments = inspect.signature(original).bind(*args, **kwargs).arguments
        counts = self.adapter.frame_counts(arguments)
        self.call = VideoCall([VideoState.start(t) for t in counts])
        try:
            output = original(*args, **kwargs)
            return self._select(output, self.call)
        finally:
            self.call = None

    def _select(self, output: Any, call: VideoCall) -> Any:
        size = self.adapter.tokens_per_frame
        inputs = [v.n_input for v in call.videos]
        rows = self.adapter.read_features(output, inputs)
        changed, self.reports = False, []
        for v, (state, slots) in enumerate(zip(call.videos, call.slots, strict=True)):
            total = state.n_input * size
            if rows[v].shape[0] < total:
                raise UnsupportedModelError(
                    f"expected at least {total} feature rows for {state.n_input} frames, "
                    f"got {rows[v].shape[0]}"
                )
            frames = rows[v][:total].unflatten(0, (state.n_input, size))
            where = torch.tensor(slots, device=frames.device)
            kept = frames.index_select(0, where) if state.n_frames != state.n_input else frames
            received = state.received
            if received is not None:
                received = self.adapter.pool(received.unsqueeze(-1)).squeeze(-1)
            chosen = self.method.select_tokens(
                VideoFeatures(kept, received, self.adapter.grid, state)
            )
            if chosen is not None:
                rows[v] = _mark(rows[v], kept, where, chosen, total)
                changed = True
            self.reports.append(
                video_report(state, size, slots, None if chosen is None else chosen.index, received)
            )
        return self.adapter.write_features(output, rows) if changed else output


def frame_slots(state: VideoState, positions: str) -> tuple[int, ...]:
    """Return the frame slot of every frame left: its own place, or evenly spaced (``respace``)."""
    n, t = state.n_frames, state.n_input
    if positions != "respace" or n == t:
        return state.first
    if n == 1:
        return (0,)
    return tuple((2 * k * (t - 1) + n - 1) // (2 * (n - 1)) for k in range(n))


def _mark(rows: Tensor, kept: Tensor, slots: Tensor, chosen: TokenSelection, total: int) -> Tensor:
    """Return ``rows`` with tokens that were not chosen set to NaN and merged values written.

    Rows from ``total`` on (newline tokens) stay as they are.
    """
    index = chosen.index.to(rows.device)
    if index.numel() == 0:
        raise VideoError("a method selected no token of a video; at least 1 is needed")
    if chosen.features is None:
        values = kept.flatten(0, 1).index_select(0, index)
    else:
        values = chosen.features.to(rows.dtype)
    size = kept.shape[1]
    target = slots[torch.div(index, size, rounding_mode="floor")] * size + index % size
    blank = torch.full_like(rows[:total], float("nan")).index_copy(0, target, values)
    return torch.cat([blank, rows[total:]])
