"""Vision side of the engine: merge frames between encoder layers, select tokens behind them.

Reducing patches inside the encoder is in :mod:`earlytom.hf.patches`.

Behind the projector every video gets its original number of rows back. Rows that must not reach
the language model are NaN: they need no side channel, and survive dtype and device moves, scatter,
beam expansion and ahead-of-time encoding by ``generate``. The prompt side removes them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.clock import spanned
from earlytom.errors import UnsupportedModelError, VideoError
from earlytom.hf.chunks import Chunks
from earlytom.hf.encoder_graph import foreign_code
from earlytom.hf.hooks import hidden_states, with_hidden_states
from earlytom.hf.patches import PatchSide
from earlytom.hf.positions import positions_of
from earlytom.hf.probe import Sink
from earlytom.hf.reuse import ReuseSide
from earlytom.hf.segments import Segments
from earlytom.hf.weights import TokenWeights
from earlytom.method import Method
from earlytom.models.base import Adapter
from earlytom.ops.anchors import probe_attention
from earlytom.ops.received import received_attention
from earlytom.ops.rows import place_rows
from earlytom.ops.tensors import to_device
from earlytom.report import VideoReport, video_report
from earlytom.running import frame_slots, merge_video, select_video, token_cells
from earlytom.stages import Shape, TokenSelection, VideoState
from earlytom.trace import START, note


@dataclass
class VideoCall:
    """State of one call of ``get_video_features``; image calls have none."""

    videos: list[VideoState]
    next_point: int = 0
    slots: list[tuple[int, ...]] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)  # of get_video_features
    images: bool = False  # these are images: nothing is merged or reduced
    segments: Segments | None = None  # of a packed tower's score layer, on their way
    overwrites: bool | None = None  # see VisionSide.may_overwrite

    @property
    def asked(self) -> dict[str, Any]:
        """What the caller asked of ``get_video_features``, by name."""
        return {**self.arguments, **self.arguments.get("kwargs", {})}

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
        self,
        adapter: Adapter,
        method: Method,
        weights: TokenWeights | None = None,
        frames_per_chunk: int | None = None,
    ) -> None:
        self.adapter = adapter
        self.method = method
        self.weights = weights
        self.chunks = Chunks(frames_per_chunk)
        self.positions = positions_of(adapter, method)
        self.points = method.merge_points(adapter.usable_layers)
        self.score_layer = method.score_layer(adapter.usable_layers)
        self._classes = adapter.class_tokens
        self.patches = PatchSide(adapter, method, self.chunks)
        self.reuse = ReuseSide(adapter, method, self.chunks)
        self.call: VideoCall | None = None
        self.reports: list[VideoReport] = []
        self._shapes: dict[tuple[int, int], Shape] = {}

    def shapes(self, videos: list[Tensor]) -> list[Shape | None]:
        """Shapes of videos by the rows ``[rows, dim]`` that the last call returned, None of others.

        Ahead-of-time encoding hands rows on without their shapes, and repeats videos for beams.
        """
        return [self._shapes.get(_memory_of(rows)) for rows in videos]

    def sinks(self) -> dict[int, Sink]:
        """What watches the attention of which encoder layer; one probe serves one layer."""
        sinks: dict[int, Sink] = dict.fromkeys(self.patches.signal_layers, self.patches.capture)
        if self.score_layer is not None:
            both = self.score_layer in sinks
            sinks[self.score_layer] = self._capture_both if both else self.capture
        return sinks

    # ------------------------------------------------------------------ encoder
    @spanned("merge")
    def before_layer(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of encoder layer ``index``: merging after layer ``index - 1`` happens here."""
        if self.call is None or not self._due(index - 1):
            return None
        hidden = hidden_states(args, kwargs)
        return with_hidden_states(args, kwargs, self._merge(hidden, self._classes))

    @spanned("score")
    def capture(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, module: nn.Module
    ) -> None:
        """Probe sink of the score layer: attention received per patch of every frame."""
        if self.call is None:
            return
        with torch.no_grad():
            received = received_attention(query, key, scaling, mask)[:, self._classes :]
        mean_keys = key.detach().mean(1)[:, self._classes :] if self.method.needs_keys() else None
        measured = self.chunks.gather("score", received, mean_keys)
        if measured is None:
            return
        for name, signal in zip(("received", "keys"), measured, strict=True):
            for v, part in enumerate(() if signal is None else signal.split(self.call.frames)):
                setattr(self.call.videos[v], name, self.patches.spread(v, part))

    @spanned("score")
    def capture_head(self, head: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        """Hook of the pooling head: vector of every frame and attention of its probe."""
        if self.call is None:
            return
        seen, inner = args[0] if args else kwargs["hidden_state"], head.attention
        hidden = self.reuse.restored(seen)
        with torch.no_grad():
            if hidden is not seen:
                output = head.forward(hidden)  # it ran on the patches computed only
            weights = head.probe, inner.in_proj_weight, inner.in_proj_bias, inner.num_heads
            parts_of = [probe_attention(x, *weights) for x in self.chunks.of(hidden)]
            probe = parts_of[0] if len(parts_of) == 1 else torch.cat(parts_of)
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

    def _merge(self, hidden: Tensor, classes: int) -> Tensor:
        """Merge frames of ``hidden``; the method sees what is behind ``classes`` tokens."""
        call = self.call
        assert call is not None
        point, layer = call.next_point, self.points[call.next_point]
        call.next_point += 1
        note("point", layer=layer)
        merged = []
        for x, state in zip(
            self.adapter.split_videos(hidden, call.videos), call.videos, strict=True
        ):
            left = merge_video(
                self.method, x, state, point, layer, classes, overwrite=self.may_overwrite()
            )
            merged.append(left)
        return self.adapter.join_frames(merged)

    def reads_other_layer(self, call: VideoCall) -> bool:
        """Whether the caller wants features of another layer than the configured one."""
        layer, depth = call.asked.get("vision_feature_layer"), len(self.adapter.layers) + 1
        return layer is not None and (
            not isinstance(layer, int) or layer % depth != self.adapter.usable_layers
        )

    def may_overwrite(self) -> bool:
        """Whether states of the encoder may be written over once the next module has read them.

        Nobody else gets to see them: neither the caller, nor a hook, nor the backward pass.
        """
        call, tower = self.call, self.adapter.tower
        if call is None or torch.is_grad_enabled():
            return False
        if call.overwrites is None:
            config: Any = getattr(tower, "config", None)
            shown = call.asked.get("output_hidden_states") or getattr(
                config, "output_hidden_states", False
            )
            call.overwrites = not (
                shown or self.reads_other_layer(call) or foreign_code(list(tower.modules()))
            )
        return call.overwrites

    # ------------------------------------------------------------------ projector
    @spanned("place")
    def before_projector(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of the adapter's entry: merge after the very last layer, if asked for."""
        if self.call is None or self.call.images:
            return None
        left = self.adapter.entry_class_tokens
        if self._due(self.adapter.usable_layers - 1):
            args = (self._merge(args[0], left), *args[1:])
        args = (self.reuse.restored(args[0], self._classes - left), *args[1:])
        if args[0].shape[0] != sum(self.call.frames):
            raise UnsupportedModelError(
                f"the projector got {args[0].shape[0]} frames where {sum(self.call.frames)} were "
                "expected; vision_feature_layer of this call lies in front of a merge layer"
            )
        return (self.patches.before_projector(args[0]), *args[1:]), kwargs

    @spanned("place")
    def after_projector(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Spread the frames left over their slots; all other frames become NaN."""
        call = self.call
        if call is None or call.images:
            return None
        call.slots = [frame_slots(v, self.positions) for v in call.videos]
        if not call.merged:
            return self.patches.after_projector(output)
        return self._place(output, call)

    def _place(self, output: Tensor, call: VideoCall) -> Tensor:
        rows, start = [], 0
        for state, slots in zip(call.videos, call.slots, strict=True):
            rows += [start + s for s in slots]
            start += state.n_input
        frames = place_rows(output.flatten(1), to_device(rows, output.device), start)
        return frames.unflatten(1, output.shape[1:])

    # ------------------------------------------------------------------ whole call
    def run(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the model's own ``get_video_features`` and select tokens on its result."""
        arguments = inspect.signature(original).bind(*args, **kwargs).arguments
        shapes, layers = self.adapter.video_shapes(arguments), self.adapter.usable_layers
        counts = [t for t, _ in shapes]
        videos = [VideoState.start(t, layers, grid) for t, grid in shapes]
        self.call = VideoCall(videos, arguments=arguments)
        note(START, frames=counts)
        self.patches.start(counts)
        self.reuse.start(counts)
        try:
            output = self._select(original(*args, **kwargs), self.call)
            rows = self.adapter.read_features(output, counts)
            self._shapes = dict(zip(map(_memory_of, rows), shapes, strict=True))
            return output
        finally:
            self.call = self.patches.call = None
            self.reuse.finish()
            self.chunks.reset()

    @spanned("select")
    def _select(self, output: Any, call: VideoCall) -> Any:
        adapter = self.adapter
        videos = adapter.read_features(output, [v.n_input for v in call.videos])
        changed, self.reports = False, []
        if self.weights is not None:
            self.weights.start()
        for v, (state, slots) in enumerate(zip(call.videos, call.slots, strict=True)):
            grid, size = state.grid, state.tokens_per_frame
            assert grid is not None
            tokens = adapter.take_tokens(videos[v], state.n_input)
            where = to_device(slots, tokens.device)
            merged = state.n_frames != state.n_input
            present = tokens.index_select(0, where) if merged else tokens
            received, chosen = state.received, self.patches.selection(v)
            if chosen is None:
                chosen, received = select_video(
                    self.method, present, state, functools.partial(adapter.pool_video, grid=grid)
                )
            elif received is not None:
                received = adapter.pool_video(received.unsqueeze(-1), grid).squeeze(-1)
            if chosen is None and merged:
                chosen = TokenSelection(torch.arange(len(slots) * size, device=tokens.device))
            if chosen is not None:
                cells = token_cells(chosen.index, where, size)
                if self.weights is not None:
                    self.weights.add(state, cells, chosen.weight)
                tokens, kept = _mark(tokens, present, cells, chosen)
                videos[v] = adapter.put_tokens(videos[v], tokens, kept)
                changed = True
            elif self.weights is not None:
                self.weights.add(state, where[:0], None)
            index = None if chosen is None else chosen.index
            note("selected", features=present, grid=grid, groups=state.groups, chosen=chosen)
            reduced, reuse = self.patches.passed, self.reuse.report(v)
            self.reports.append(video_report(state, size, slots, index, received, reduced, reuse))
        return adapter.write_features(output, videos) if changed else output


def _memory_of(rows: Tensor) -> tuple[int, int]:
    """Return where in memory the rows of a video are."""
    return rows.data_ptr(), len(rows)


def _mark(
    tokens: Tensor, present: Tensor, target: Tensor, chosen: TokenSelection
) -> tuple[Tensor, Tensor]:
    """Write the chosen tokens into a NaN copy of ``tokens``; also return which ones are there."""
    index = chosen.index.to(tokens.device)
    if index.numel() == 0:
        raise VideoError("a method selected no token of a video; at least 1 is needed")
    count = tokens.shape[0] * tokens.shape[1]
    if chosen.features is None:
        filled = place_rows(present.flatten(0, 1), target, count, index)
    else:
        filled = place_rows(chosen.features.to(tokens.dtype), target, count)
    kept = torch.zeros(count, dtype=torch.bool, device=tokens.device)
    kept[target] = True
    return filled.unflatten(0, tokens.shape[:2]), kept.unflatten(0, tokens.shape[:2])
