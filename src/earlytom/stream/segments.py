"""Segments of a stream: frames pass the merge points of the encoder as soon as they can.

At every merge point the frames of the segment that is still open wait. When it ends, its merged
frames run through the next layers, up to the next merge point, where the same happens again. The
decisions are those of the method itself: cuts depend on the frames since the last cut only, so it
is asked about the open segment and the new frames, and what it says about closed segments stands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.hf.encoder_graph import foreign_code, without_hooks
from earlytom.hf.probe import Probe
from earlytom.models.base import Adapter
from earlytom.ops.plan import Groups, MergePlan
from earlytom.ops.received import received_attention
from earlytom.ops.tensors import to_device
from earlytom.running import token_cells
from earlytom.stages import EMBEDDINGS, TokenSelection, VideoFeatures, VideoState
from earlytom.stream.frames import Frames, joined, split
from earlytom.stream.segmentwise import CausalEarlyTom, pieces_of
from earlytom.stream.tokens import Part


@dataclass(frozen=True)
class SegmentState:
    """What waits.

    Attributes:
        frames: input frames so far.
        held: frames of the open segment of every merge point, and behind the encoder.
    """

    frames: int
    held: tuple[Frames | None, ...]

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        return [x for frames in self.held if frames is not None for x in frames.tensors()]


class SegmentEncoder:
    """Turns pixels into the tokens of finished segments; all state is passed in and returned.

    Args:
        adapter: the model: a tower that takes frames as rows of its batch.
        method: decides about frames and tokens.

    Raises:
        UnsupportedModelError: not such a tower.
        ConfigError: segments without a longest length, or positions that need the whole clip.
    """

    def __init__(self, adapter: Adapter, method: CausalEarlyTom) -> None:
        kind = getattr(getattr(adapter.tower, "config", None), "model_type", "unknown")
        foreign = foreign_code(list(adapter.tower.modules()))
        if kind != "siglip_vision_model" or adapter.class_tokens:
            raise UnsupportedModelError(
                f"frames cannot wait between the layers of a vision encoder {kind!r}; give window"
            )
        if foreign is not None:
            raise UnsupportedModelError(
                f"frames cannot wait between the layers of this vision encoder: {foreign} has a "
                "hook or forward of its own; give window"
            )
        if method.policy == "paper" and method.max_window is None:
            raise ConfigError(
                "segments of policy 'paper' may never end; give max_window (longest segment)"
            )
        if method.resolved_positions() == "respace":
            raise ConfigError("positions 'respace' needs the length of the clip; use keep")
        self.adapter, self.method = adapter, method
        n = adapter.usable_layers
        self.points = method.merge_points(n)
        self.score_layer = method.score_layer(n)
        self.cuts_features = method.cuts_features(n)
        # views without hooks: a method that is put on the model meanwhile changes nothing here
        self._embeddings = without_hooks(adapter.embeddings())
        self._layers = [without_hooks(layer) for layer in adapter.layers[:n]]
        self._projector = without_hooks(adapter.projectors[0])
        self._received: Tensor | None = None
        if self.score_layer is not None:
            Probe(adapter.attention(self._layers[self.score_layer]), self._score)

    def start(self) -> SegmentState:
        """Return the state before the first frame."""
        return SegmentState(0, (None,) * (len(self.points) + 1))

    def push(self, state: SegmentState, pixels: Tensor) -> tuple[SegmentState, list[Part]]:
        """Return the state behind frames ``[n, 3, height, width]``, and the segments they end."""
        after = state.frames + len(pixels)
        first = tuple(range(state.frames, after))
        frames = Frames(first, (1,) * len(first), self._embeddings(pixels))
        return self._advance(replace(state, frames=after), frames, final=False)

    def rest(self, state: SegmentState) -> list[Part]:
        """Return the segments that are open, as if the stream ended here."""
        return self._advance(state, None, final=True)[1]

    # ------------------------------------------------------------------ the way of frames
    def _advance(
        self, state: SegmentState, frames: Frames | None, final: bool
    ) -> tuple[SegmentState, list[Part]]:
        held: list[Frames | None] = []
        here = EMBEDDINGS
        for point, layer in enumerate(self.points):
            new, here = self._run(frames, here, layer), layer
            frames, waiting = self._merge(state.held[point], new, point, final)
            held.append(waiting)
        new = self._project(frames, here)
        parts, waiting = self._cut(state.held[-1], new, state.frames, final)
        return SegmentState(state.frames, (*held, waiting)), parts

    def _run(self, frames: Frames | None, here: int, until: int) -> Frames | None:
        """Run the layers behind ``here`` up to ``until``."""
        if frames is None:
            return None
        hidden, received = frames.hidden, frames.received
        for i in range(here + 1, until + 1):
            hidden = self._layers[i](hidden, None)
            if i == self.score_layer:
                received, self._received = self._received, None
        return replace(frames, hidden=hidden, received=received)

    def _score(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, module: nn.Module
    ) -> None:
        self._received = received_attention(query, key, scaling, mask)

    def _merge(
        self, held: Frames | None, new: Frames | None, point: int, final: bool
    ) -> tuple[Frames | None, Frames | None]:
        """Return the merged frames of closed segments, and the frames of the open one."""
        frames = joined(held, new)
        if frames is None or (new is None and not final):
            return None, held
        state = VideoState(len(frames), frames.first, frames.count)
        size = self.adapter.tokens_per_frame
        plan = self.method.merge_frames(frames.hidden, state, point, size)
        assert plan is not None
        if final:
            return frames.merged(plan), None
        closed, waiting = split(frames, plan.groups[-1][0])
        return None if closed is None else closed.merged(_closed(plan)), waiting

    def _project(self, frames: Frames | None, here: int) -> Frames | None:
        """Run what follows the last merge; states stay only if segments are cut on them."""
        if frames is None:
            return None
        done = self._run(frames, here, len(self._layers) - 1)
        assert done is not None
        features = self.adapter.pool(self._projector(done.hidden))
        received = done.received
        if received is not None:
            received = self.adapter.pool(received.unsqueeze(-1)).squeeze(-1)
        hidden = frames.hidden
        if self.cuts_features:
            hidden = hidden.new_empty(len(frames), 0)
        return replace(frames, hidden=hidden, received=received, features=features)

    # ------------------------------------------------------------------ tokens
    def _cut(
        self, held: Frames | None, new: Frames | None, total: int, final: bool
    ) -> tuple[list[Part], Frames | None]:
        """Return the tokens of closed segments, and the frames of the open one."""
        frames = joined(held, new)
        if frames is None or (new is None and not final):
            return [], held
        features = frames.features
        assert features is not None
        groups = self.method.segments(features if self.cuts_features else frames.hidden)
        waiting = None
        if not final:
            last = groups[-1][0]
            total = frames.first[last]  # the input frames of closed segments end here
            groups = groups[:-1]
            closed, waiting = split(frames, last)
            if closed is None:
                return [], waiting
            frames = closed
        return self._select(frames, total, groups), waiting

    def _select(self, frames: Frames, total: int, groups: Groups) -> list[Part]:
        assert frames.features is not None
        state = VideoState(total, frames.first, frames.count, grid=self.adapter.grid)
        state.n_layers = self.adapter.usable_layers
        video = VideoFeatures(frames.features, frames.received, self.adapter.grid, state)
        starts = [frames.first[start] for start, _ in groups]
        spans = pairwise([*starts, total])
        return [
            self._part(piece, *span)
            for piece, span in zip(pieces_of(video, groups), spans, strict=True)
        ]

    def _part(self, piece: VideoFeatures, start: int, stop: int) -> Part:
        size = piece.features.shape[1]
        rows = piece.features.flatten(0, 1)
        chosen = self.method.select_segment(piece)
        if chosen is None:
            chosen = TokenSelection(torch.arange(len(rows), device=rows.device))
        index = chosen.index
        slots = to_device(piece.state.first, index.device)
        return Part(
            start=start,
            stop=stop,
            frames=piece.state.n_frames,
            features=rows[index] if chosen.features is None else chosen.features.to(rows.dtype),
            cells=token_cells(index, slots, size),
            score=None if piece.received is None else piece.received.flatten()[index],
        )


def _closed(plan: MergePlan) -> MergePlan:
    """Return the part of ``plan`` that is about all segments but the last one."""
    stop = plan.groups[-1][0]
    rows = sum(members[0] < stop for members in plan.members)
    return MergePlan(stop, plan.members[:rows], plan.weights[:rows], plan.groups[:-1])
