"""Vision side of the engine: stop computing patches that did not change since an earlier frame.

From one layer on the encoder carries only the *fresh* patches of all frames, packed as one row
``[1, fresh, dim]``: norms, projections and MLPs work token by token and need no change. Attention
alone needs frames. Every frame attends with its fresh queries to all of its patches, where a patch
that was not computed lends key and value of its *source*: the same patch in the latest frame that
did compute it. Behind the encoder every patch gets the state of its source back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.clock import span, spanned
from earlytom.errors import ConfigError
from earlytom.hf.chunks import Chunks
from earlytom.hf.hooks import hidden_states, with_hidden_states
from earlytom.hf.probe import Probe, Sink
from earlytom.method import Method
from earlytom.models.base import Adapter
from earlytom.ops.packed import fuses, packed_attention
from earlytom.ops.select import mask_index
from earlytom.ops.tensors import slices, to_device
from earlytom.trace import note

_FILL = 0.75  # frames share one attention call if the smallest has this share of fresh patches


@dataclass(frozen=True)
class FreshPatches:
    """Which patches of a call are computed, and whose state every patch has.

    Attributes:
        source: ``[frames, patches]`` int64, row of the packed patches that each patch shows.
        groups: per attention call the frames ``[g]`` and their packed queries ``[g, longest]``.
        place: ``[fresh]`` int64, where the output of every query is among all outputs.
        starts: ``[frames + 1]`` int64, where packed patches of every frame begin, and their end.
        counts: fresh patches of every frame.
        queries: per frame, how many queries attend for it, padding included.
    """

    source: Tensor
    groups: list[tuple[Tensor, Tensor]]
    place: Tensor
    starts: Tensor
    counts: tuple[int, ...]
    queries: tuple[int, ...]

    @classmethod
    def build(cls, fresh: Tensor, step: int | None = None) -> FreshPatches:
        """Plan attention for ``fresh [frames, patches]`` bool; its row sums go to the host.

        Patches of a video's first frame must be fresh. At most ``step`` frames share a call.
        """
        row = fresh.flatten().long().cumsum(0).view(fresh.shape) - 1
        source = torch.where(fresh, row, -1).cummax(0).values
        counts = fresh.sum(1).cpu()
        starts = counts.cumsum(0) - counts
        groups, used, longest = [], 0, [0] * len(fresh)
        place = torch.empty(int(counts.sum()), dtype=torch.int64)
        for alike in _alike(counts.tolist()):
            most = int(counts[alike[0]])
            for first, end in slices(len(alike), step or len(alike)):
                members = alike[first:end]
                many = counts[members, None]
                for t in members:
                    longest[t] = most
                column = torch.arange(most)
                queries = starts[members, None] + column.minimum(many - 1)
                mine = column < many
                output = used + torch.arange(queries.numel()).view(queries.shape)
                place[queries[mine]] = output[mine]
                used += queries.numel()
                groups.append((to_device(members, fresh.device), to_device(queries, fresh.device)))
        place = to_device(place, fresh.device)
        begin = to_device(torch.cat([starts, counts.sum()[None]]), fresh.device)
        return cls(source, groups, place, begin, tuple(counts.tolist()), tuple(longest))

    def pack(self, hidden: Tensor, fresh: Tensor) -> Tensor:
        """Return the fresh rows of ``[frames, patches, dim]`` as ``[1, fresh, dim]``."""
        index = mask_index(fresh, self.place.numel())
        return hidden.flatten(0, 1).index_select(0, index)[None]

    def unpack(self, packed: Tensor, cut: int = 0) -> Tensor:
        """Return ``[frames, patches, dim]`` from ``[1, fresh, dim]``, both without ``cut`` rows."""
        source = self.source.to(packed.device)[:, cut:] - cut  # layers may be on several devices
        return packed[0].index_select(0, source.flatten()).unflatten(0, source.shape)

    def rows(self, packed: Tensor, frames: Tensor | None = None) -> Tensor:
        """Return ``[frames, heads, patches, d]`` from ``[1, heads, fresh, d]``."""
        source = self.source if frames is None else self.source.index_select(0, frames)
        return _take(packed, source)

    def attend(
        self,
        attend: Callable[..., Any],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None = None,
    ) -> tuple[Tensor, None]:
        """Attention of the packed queries ``[1, heads, fresh, d]``: ``[1, fresh, heads, d]``.

        ``scale`` says that attention is plain, so that a kernel may do it without gathers.
        """
        if scale is not None and fuses(query, key, value):
            source, starts = (x.to(query.device) for x in (self.source, self.starts))
            return packed_attention(query, key, value, source, starts, scale), None
        outputs = []
        for frames, queries in self.groups:
            with span("gather"):
                q = _take(query, queries)
                k, v = self.rows(key, frames), self.rows(value, frames)
            outputs.append(attend(q, k, v)[0].flatten(0, 1))
        with span("gather"):
            return torch.cat(outputs).index_select(0, self.place.to(query.device))[None], None


def _take(packed: Tensor, index: Tensor) -> Tensor:
    """Return rows ``index [a, b]`` of ``[1, heads, n, d]`` as ``[a, heads, b, d]``.

    All heads of a row lie side by side in memory (projections wrote them so), and are copied whole.
    """
    rows = packed[0].transpose(0, 1)
    heads, width = rows.shape[1:]
    taken = rows.flatten(1).index_select(0, index.flatten().to(rows.device))
    return taken.view(*index.shape, heads, width).transpose(1, 2)


def _alike(counts: Sequence[int]) -> list[list[int]]:
    """Group frames of similar, nonzero counts, the largest first."""
    groups: list[list[int]] = []
    for t in sorted(range(len(counts)), key=lambda t: -counts[t]):
        if counts[t] == 0:
            continue
        if not groups or counts[t] < _FILL * counts[groups[-1][0]]:
            groups.append([])
        groups[-1].append(t)
    return groups


class ReuseSide:
    """Runs the patch reuse of ``method`` in the vision tower of ``adapter``.

    Raises:
        ConfigError: the layer is out of range, or frames or patches are reduced as well.
        UnsupportedModelError: the encoder does not keep frames as rows of patches.
    """

    def __init__(self, adapter: Adapter, method: Method, chunks: Chunks) -> None:
        self.adapter = adapter
        self.method = method
        self.chunks = chunks
        self.layer = method.reuse_layer(adapter.usable_layers)
        self.fresh: FreshPatches | None = None
        self.frames: list[int] | None = None
        if self.layer is not None:
            self._check(self.layer)

    def _check(self, layer: int) -> None:
        name, usable = self.method.name, self.adapter.usable_layers
        hint = "" if self.method.without_reuse() is None else " (set encoder_budget to 1)"
        self.adapter.check_patches(f"{name} reuses patches", hint)
        self.adapter.check_encoder_layers([layer])
        if self.method.merge_points(usable) or self.method.reduce_layers(usable):
            raise ConfigError(f"{name} reuses patches and merges others; only one is possible")
        if self.method.encoder_grid(self.adapter.grid) is not None:
            raise ConfigError(f"{name} reuses patches and lowers the resolution; choose one")

    def start(self, frames: list[int]) -> None:
        """Begin a call with videos of so many frames."""
        self.frames, self.fresh = list(frames), None

    def finish(self) -> None:
        """End the call."""
        self.frames = self.fresh = None

    def report(self, video: int) -> tuple[int, int, int] | None:
        """(layer, patches computed from there on, queries) of a video; None if all were."""
        if self.layer is None or self.fresh is None or self.frames is None:
            return None
        start = sum(self.frames[:video])
        own = slice(start, start + self.frames[video])
        patches = sum(self.fresh.counts[own]) - self.frames[video] * self.adapter.class_tokens
        return self.layer, patches, sum(self.fresh.queries[own])

    def probes(self, sinks: dict[int, Sink]) -> list[Probe]:
        """Take over the attention of the packed layers, and probe the others in ``sinks``."""
        depth = len(self.adapter.layers)  # layers that nobody looks at run on packed rows too
        packed = range(depth if self.layer is None else self.layer, depth)
        probes = []
        for i in sorted({*sinks, *packed}):
            module = self.adapter.attention(self.adapter.layers[i])
            sink = sinks.get(i)
            if i in packed:
                probes.append(Probe(module, sink and self._unpacked(sink), self.attend))
            else:
                probes.append(Probe(module, sink))
        return probes

    @spanned("fresh")
    def before_layer(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of ``layer``: decide what is fresh, and pack it."""
        if self.frames is None:
            return None
        hidden = hidden_states(args, kwargs)
        usable = self.adapter.usable_layers
        videos = self.adapter.split_frames(hidden.detach(), self.frames)
        classes = self.adapter.class_tokens
        fresh = torch.cat([self.method.fresh_patches(x[:, classes:], usable) for x in videos])
        note("fresh", fresh=fresh, grid=self.adapter.patch_grid)
        if classes:  # always computed
            fresh = nn.functional.pad(fresh, (classes, 0), value=True)
        self.fresh = FreshPatches.build(fresh, self.chunks.frames)
        return with_hidden_states(args, kwargs, self.fresh.pack(hidden, fresh))

    def restored(self, hidden: Tensor, cut: int = 0) -> Tensor:
        """Give every patch of the call the state of its source.

        Args:
            hidden: ``[1, fresh, dim]``.
            cut: class tokens that the model took for those of a frame and left out.
        """
        return hidden if self.fresh is None else self.fresh.unpack(hidden, cut)

    def attend(
        self,
        attend: Callable[..., Any],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
    ) -> tuple[Tensor, Any]:
        """Attention of a packed layer; calls without video stay as they are."""
        if self.fresh is None:
            output: tuple[Tensor, Any] = attend(query, key, value)
            return output
        return self.fresh.attend(attend, query, key, value, scale)

    def _unpacked(self, sink: Sink) -> Sink:
        """Show ``sink`` whole frames."""

        def whole(query: Tensor, key: Tensor, *rest: Any) -> None:
            fresh = self.fresh
            if fresh is None:
                return sink(query, key, *rest)
            every = torch.arange(len(fresh.source), device=fresh.source.device)
            return self.chunks.run(
                list(self.chunks.of(every)),
                len(every),
                lambda frames: sink(fresh.rows(query, frames), fresh.rows(key, frames), *rest),
            )

        return whole
