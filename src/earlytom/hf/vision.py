"""Vision side of the engine: merge frames between encoder layers, select tokens behind them.

Reducing patches inside the encoder is in :mod:`earlytom.hf.patches`.

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
from earlytom.hf.hooks import hidden_states, with_hidden_states
from earlytom.hf.patches import PatchSide
from earlytom.hf.probe import Sink
from earlytom.hf.reuse import ReuseSide
from earlytom.hf.weights import TokenWeights
from earlytom.method import Method
from earlytom.models.base import Adapter
from earlytom.ops.anchors import probe_attention
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

    def __init__(
        self, adapter: Adapter, method: Method, weights: TokenWeights | None = None
    ) -> None:
        self.adapter = adapter
        self.method = method
        self.weights = weights
        self.points = method.merge_points(adapter.usable_layers)
        self.score_layer = method.score_layer(adapter.usable_layers)
        self.patches = PatchSide(adapter, method)
        self.reuse = ReuseSide(adapter, method)
        self.call: VideoCall | None = None
        self.reports: list[VideoReport] = []

    def sinks(self) -> dict[int, Sink]:
        """What watches the attention of which encoder layer; one probe serves one layer."""
        sinks: dict[int, Sink] = dict.fromkeys(self.patches.signal_layers, self.patches.capture)
        if self.score_layer is not None:
            both = self.score_layer in sinks
            sinks[self.score_layer] = self._capture_both if both else self.capture
        return sinks

    # ------------------------------------------------------------------ encoder
    def before_layer(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of encoder layer ``index``: merging after layer ``index - 1`` happens here."""
        if self.call is None or not self._due(index - 1):
            return None
        return with_hidden_states(args, kwargs, self._merge(hidden_states(args, kwargs)))

    def capture(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, module: nn.Module
    ) -> None:
        """Probe sink of the score layer: attention received per patch of every frame."""
        if self.call is None:
            return
        with torch.no_grad():
            received = received_attention(query, key, scaling, mask)
        for v, part in enumerate(received.split(self.call.frames)):
            self.call.videos[v].received = self.patches.spread(v, part)
        if self.method.needs_keys():
            for v, mean_key in enumerate(key.detach().mean(1).split(self.call.frames)):
                self.call.videos[v].keys = self.patches.spread(v, mean_key)

    def capture_head(self, head: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        """Hook of the pooling head: vector of every frame and attention of its probe."""
        if self.call is None:
            return
        seen, inner = args[0] if args else kwargs["hidden_state"], head.attention
        hidden = self.reuse.restored(seen)
        with torch.no_grad():
            if hidden is not seen:
                output = head.forward(hidden)  # it ran on the patches computed only
            probe = probe_attention(
                hidden, head.probe, inner.in_proj_weight, inner.in_proj_bias, inner.num_heads
            )
        frames = self.call.frames
        parts = zip(output.detach().split(frames), probe.split(frames), strict=True)
        for v, (vectors, part) in enumerate(parts):
            self.call.videos[v].vectors = vectors
            self.call.videos[v].probe = self.patches.spread(v, part)

    def _capture_both(self, *signals: Any) -> None:
        self.capture(*signals)
        self.patches.capture(*signals)

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
        args = (self.reuse.restored(args[0]), *args[1:])
        if args[0].shape[0] != sum(self.call.frames):
            raise UnsupportedModelError(
                f"the projector got {args[0].shape[0]} frames where {sum(self.call.frames)} were "
                "expected; vision_feature_layer of this call lies in front of a merge layer"
            )
        return (self.patches.before_projector(args[0]), *args[1:]), kwargs

    def after_projector(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Spread the frames left over their slots; all other frames become NaN."""
        call = self.call
        if call is None:
            return None
        call.slots = [frame_slots(v, self.method.resolved_positions()) for v in call.videos]
        if not call.merged:
            return self.patches.after_projector(output)
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
        self.call = VideoCall([VideoState.start(t, self.adapter.usable_layers) for t in counts])
        self.patches.start(counts)
        self.reuse.start(counts)
        try:
            output = original(*args, **kwargs)
            return self._select(output, self.call)
        finally:
            self.call = self.patches.call = None
            self.reuse.finish()

    def _select(self, output: Any, call: VideoCall) -> Any:
        adapter, size = self.adapter, self.adapter.tokens_per_frame
        videos = adapter.read_features(output, [v.n_input for v in call.videos])
        changed, self.reports = False, []
        if self.weights is not None:
            self.weights.start()
        for v, (state, slots) in enumerate(zip(call.videos, call.slots, strict=True)):
            tokens = adapter.take_tokens(videos[v], state.n_input)
            where = torch.tensor(slots, device=tokens.device)
            merged = state.n_frames != state.n_input
            present = tokens.index_select(0, where) if merged else tokens
            received, probe, keys = state.received, state.probe, state.keys
            if received is not None:
                received = adapter.pool(received.unsqueeze(-1)).squeeze(-1)
            if probe is not None:
                probe = adapter.pool(probe.unsqueeze(-1)).squeeze(-1)
            if keys is not None:
                keys = adapter.pool(keys)
            chosen = self.patches.selection(v)
            if chosen is None:
                chosen = self.method.select_tokens(
                    VideoFeatures(
                        present, received, adapter.grid, state, keys, state.vectors, probe
                    )
                )
            if chosen is None and merged:
                chosen = TokenSelection(torch.arange(len(slots) * size, device=tokens.device))
            if chosen is not None:
                cells = _cells(chosen.index, where, size)
                if self.weights is not None:
                    self.weights.add(state.n_input, cells, chosen.weight)
                tokens, kept = _mark(tokens, present, cells, chosen)
                videos[v] = adapter.put_tokens(videos[v], tokens, kept)
                changed = True
            elif self.weights is not None:
                self.weights.add(state.n_input, where[:0], None)
            index = None if chosen is None else chosen.index
            reduced, reuse = self.patches.passed, self.reuse.report(v)
            self.reports.append(video_report(state, size, slots, index, received, reduced, reuse))
        return adapter.write_features(output, videos) if changed else output


def frame_slots(state: VideoState, positions: str) -> tuple[int, ...]:
    """Return the frame slot of every frame left: its own place, or evenly spaced (``respace``)."""
    n, t = state.n_frames, state.n_input
    if positions != "respace" or n == t:
        return state.first
    if n == 1:
        return (0,)
    return tuple((2 * k * (t - 1) + n - 1) // (2 * (n - 1)) for k in range(n))


def _cells(index: Tensor, slots: Tensor, size: int) -> Tensor:
    """Return the cell among all input frames of tokens ``index`` of the frames present."""
    index = index.to(slots.device)
    return slots[torch.div(index, size, rounding_mode="floor")] * size + index % size


def _mark(
    tokens: Tensor, present: Tensor, target: Tensor, chosen: TokenSelection
) -> tuple[Tensor, Tensor]:
    """Write the chosen tokens into a NaN copy of ``tokens``; also return which ones are there."""
    index = chosen.index.to(tokens.device)
    if index.numel() == 0:
        raise VideoError("a method selected no token of a video; at least 1 is needed")
    if chosen.features is None:
        values = present.flatten(0, 1).index_select(0, index)
    else:
        values = chosen.features.to(tokens.dtype)
    blank = torch.full_like(tokens, float("nan")).flatten(0, 1)
    kept = torch.zeros(blank.shape[0], dtype=torch.bool, device=tokens.device)
    kept[target] = True
    filled = blank.index_copy(0, target, values).unflatten(0, tokens.shape[:2])
    return filled, kept.unflatten(0, tokens.shape[:2])
