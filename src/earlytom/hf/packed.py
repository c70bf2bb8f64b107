"""Vision side of the engine for packed towers, where frames are stretches of rows.

Every layer behind a merge gets segments and rotary embeddings of the frames that are left; its
attention reaches the probe segment by segment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from earlytom.clock import spanned
from earlytom.errors import UnsupportedModelError
from earlytom.hf.deepstack import placed
from earlytom.hf.hooks import hidden_states, with_hidden_states
from earlytom.hf.segments import Segments
from earlytom.hf.vision import VideoCall, VisionSide
from earlytom.ops.rows import place_rows
from earlytom.ops.tensors import to_device


class PackedVisionSide(VisionSide):
    """Runs stage I and stage II on a packed tower."""

    @spanned("merge")
    def before_layer(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of every layer behind the first merge point."""
        call = self.call
        if call is None:
            return None
        if self._due(index - 1):
            args, kwargs = with_hidden_states(
                args, kwargs, self._merge(hidden_states(args, kwargs), 0)
            )
        if not call.merged:
            return args, kwargs
        return args, self.adapter.layer_inputs(index, kwargs, call.videos)

    @spanned("score")
    def capture(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, module: nn.Module
    ) -> None:
        """Probe sink of the score layer, called for one segment after another."""
        call, adapter = self.call, self.adapter
        if call is None:
            return
        videos = self.chunks.videos or call.videos
        if call.segments is None:
            call.segments = Segments(adapter.encoder_rows(videos))
        if not call.segments.add(query.detach(), key.detach()):
            return
        segments, call.segments = call.segments, None
        assert self.score_layer is not None
        received = segments.received(scaling, adapter.segment_frames(self.score_layer, videos))
        keys = segments.keys() if self.method.needs_keys() else None
        measured = self.chunks.gather("score", received, keys)
        for name, signal in zip(("received", "keys"), measured or (), strict=False):
            if signal is not None:
                parts = adapter.split_videos(signal, call.videos)
                for state, part in zip(call.videos, parts, strict=True):
                    setattr(state, name, part)

    @spanned("place")
    def before_projector(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of the merger: merge after the very last layer, if asked for."""
        call = self.call
        if call is None:
            return None
        hidden = args[0]
        if self._due(self.adapter.usable_layers - 1):
            hidden = self._merge(hidden, 0)
        rows = self.adapter.encoder_rows(call.videos)
        if hidden.shape[0] != rows:
            raise UnsupportedModelError(
                f"the merger got {hidden.shape[0]} patches where {rows} were expected"
            )
        return (hidden, *args[1:]), kwargs

    @spanned("place")
    def after_deep(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Hook of a deepstack merger: put the features aside, keep the number of rows."""
        call = self.call
        if call is None:
            return None
        parts = self.adapter.split_projected(output, call.videos)
        for state, x in zip(call.videos, parts, strict=True):
            state.deep.append(x)
        if not call.merged:
            return None
        rows = sum(v.n_input * v.tokens_per_frame for v in call.videos)
        return output.new_zeros(()).expand(rows, output.shape[1])

    def _select(self, output: Any, call: VideoCall) -> Any:
        output = super()._select(output, call)
        if not call.merged or not self.adapter.deep_layers:
            return output  # columns that are gone take their features along
        layers: list[list[Tensor]] = [[] for _ in self.adapter.deep_layers]
        for state, slots in zip(call.videos, call.slots, strict=True):
            for done, x in zip(layers, state.deep, strict=True):
                done.append(placed(x, to_device(slots, x.device), state.n_input))
        return self.adapter.write_deep(output, layers)

    def _place(self, output: Tensor, call: VideoCall) -> Tensor:
        """Spread the frames left of every video; all other rows become NaN."""
        done = []
        parts = self.adapter.split_projected(output, call.videos)
        for x, state, slots in zip(parts, call.videos, call.slots, strict=True):
            where = to_device(slots, x.device)
            frames = place_rows(x.flatten(1), where, state.n_input)
            done.append(frames.view(-1, x.shape[-1]))
        return done[0] if len(done) == 1 else torch.cat(done)
