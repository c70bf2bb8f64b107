"""The vision encoder over a few frames at a time, between the decisions of a method.

While a video call is open, the modules that hold most memory (layers, projector, pooling) run
chunk by chunk: instance-level stand-ins for their ``forward``. Everything between them (merges,
reductions, hooks of others) sees all frames as ever, so decisions cross the borders of chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from earlytom.hf.chunks import Joined, Piece, cut_rows, cut_tokens, cut_videos, lead
from earlytom.hf.vision import VisionSide
from earlytom.override import Override

Cut = Callable[[tuple[Any, ...], dict[str, Any]], list[Piece]]
Then = Callable[[Tensor], Tensor]


class ChunkedEncoder:
    """Puts stand-ins on the modules of the vision encoder of ``vision``.

    A layer runs as a whole over the frames of a chunk. Where a method acts inside of a layer, its
    attention and its MLP do so one by one. Patches that are packed for reuse have no frames: there
    the MLP takes as many patches as a chunk of frames has.

    Args:
        vision: runs the method; says how many frames a chunk has.
    """

    def __init__(self, vision: VisionSide) -> None:
        self.vision = vision
        self.chunks = vision.chunks
        self._forwards: list[ChunkedForward] = []
        self._pooling: _Pooling | None = None

    # ------------------------------------------------------------------ on and off
    def install(self) -> None:
        """Take the place of ``forward`` of these instances."""
        adapter = self.vision.adapter
        for module, cut, then, reads_once in self._modules():
            self._forwards.append(ChunkedForward(self, module, cut, then, reads_once))
        if adapter.pooling_name is not None:
            self._pooling = _Pooling(adapter.inner, adapter.pooling_name, self)

    def remove(self) -> None:
        """Give the instances their own ``forward`` back."""
        for forward in self._forwards:
            forward.remove()
        self._forwards.clear()
        if self._pooling is not None:
            self._pooling.remove()
            self._pooling = None

    def _modules(self) -> Iterator[tuple[nn.Module, Cut, Then | None, bool]]:
        """Yield what is to run in chunks.

        That is the module, how its arguments are cut, what follows it chunk by chunk, and whether
        nobody reads the states that it was given once it has run.
        """
        adapter = self.vision.adapter
        rows: Cut = self._packed if adapter.packed else self._rows
        yield adapter.embeddings(), rows, None, False
        for i, layer in enumerate(adapter.layers):
            # behind the usable layers the projector reads what is in front
            once = i < adapter.usable_layers and not self._shown(i)
            if self.vision.reuse.layer is not None and i >= self.vision.reuse.layer:
                yield adapter.mlp(layer), self._tokens, None, True
            elif self.vision.patches.inside(i):
                yield adapter.attention(layer), rows, None, True
                yield adapter.mlp(layer), rows, None, True
            else:
                cut = functools.partial(self._packed, layer=i) if adapter.packed else rows
                yield layer, cut, None, once
        if adapter.pooling_head is not None:
            yield adapter.pooling_head, rows, None, False
        if adapter.pooler is not None:
            yield adapter.pooler, rows, None, False
        for module in adapter.projectors:
            yield module, rows, self._pool if adapter.pooling_name is not None else None, False
        for module in adapter.deep_projectors:
            yield module, rows, None, False

    def _shown(self, layer: int) -> bool:
        """Whether a method sees what ``layer`` is given, and may hold on to it."""
        vision, patches = self.vision, self.vision.patches
        return (
            layer - 1 in vision.points
            or (patches.place == "input" and layer in patches.layers)
            or (patches.place == "output" and layer - 1 in patches.layers)
        )

    # ------------------------------------------------------------------ chunks
    def open(self) -> bool:
        """Whether a call is running whose frames may be cut."""
        call = self.vision.call
        if call is None or call.images:
            return False
        return not call.asked.get("output_attentions")  # maps are of all frames

    @property
    def _step(self) -> int:
        assert self.chunks.frames is not None
        return self.chunks.frames

    def _rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Piece]:
        return cut_rows(args, kwargs, self._step)

    def _tokens(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Piece]:
        adapter = self.vision.adapter
        return cut_tokens(args, kwargs, self._step * (adapter.class_tokens + adapter.patch_count))

    def _packed(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], layer: int | None = None
    ) -> list[Piece]:
        adapter, call = self.vision.adapter, self.vision.call
        assert call is not None
        states, pieces, start = lead(args, kwargs), [], 0
        if adapter.encoder_rows(call.videos) != len(states):
            return []
        for videos in cut_videos(call.videos, self._step):
            end = start + adapter.encoder_rows(videos)
            cut, named = (states[start:end], *args[1:]), kwargs
            if not args:
                name = next(k for k, x in kwargs.items() if x is states)
                cut, named = (), {**kwargs, name: states[start:end]}
            if layer is not None:
                rope = kwargs.get("position_embeddings")
                if rope is not None:
                    rope = tuple(x[start:end] for x in rope)
                named = {**named, "position_embeddings": rope}
                named = adapter.layer_inputs(layer, named, videos)
            pieces.append(Piece(cut, named, (start, end), videos=tuple(videos)))
            start = end
        return pieces

    def _pool(self, tokens: Tensor) -> Tensor:
        """Pool the projected patches of a chunk, unless a reduction left single tokens."""
        self.chunks.pooled = True
        if self.vision.patches.sparse:
            return tokens
        return self._pooling.original(tokens) if self._pooling is not None else tokens


class ChunkedForward:
    """Stands in for the ``forward`` of one module.

    Args:
        owner: says when.
        module: any module whose frames do not see each other.
        cut: cuts its arguments.
        then: applied to the result of every chunk.
        reads_once: nobody reads the states given to the module once it has run.
    """

    def __init__(
        self,
        owner: ChunkedEncoder,
        module: nn.Module,
        cut: Cut,
        then: Then | None = None,
        reads_once: bool = False,
    ) -> None:
        self._owner, self._cut, self._then = owner, cut, then
        self._reads_once = reads_once
        self._original: Callable[..., Any] = module.forward
        functools.update_wrapper(self, self._original, updated=())
        self.remove = Override(module, "forward", self).remove

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on one chunk after another."""
        pieces = self._cut(args, kwargs) if self._owner.open() else []
        if len(pieces) < 2:
            return self._original(*args, **kwargs)
        states, chunks, rows = lead(args, kwargs), self._owner.chunks, pieces[-1].rows[1]
        over = self._reads_once and self._owner.vision.may_overwrite() and states.is_contiguous()
        joined = Joined(rows, pieces[0].dim, states if over else None)
        more: list[Any] = []

        def work(piece: Piece) -> None:
            chunks.videos = piece.videos
            out = self._original(*piece.args, **piece.kwargs)
            if isinstance(out, tuple):  # attention maps, which nobody asked for
                more[:] = [None] * (len(out) - 1)
                out = out[0]
            joined.add(
                out if self._then is None else self._then(out), piece.rows[1] - piece.rows[0]
            )

        chunks.run(pieces, rows, work)
        return (joined.whole(), *more) if more else joined.whole()


class _Pooling:
    """Stands in for the method by which a model pools behind its projector."""

    def __init__(self, inner: nn.Module, name: str, owner: ChunkedEncoder) -> None:
        self._chunks = owner.chunks
        self.original: Callable[[Tensor], Tensor] = getattr(inner, name)
        functools.update_wrapper(self, self.original, updated=())
        self.remove = Override(inner, name, self).remove

    def __call__(self, tokens: Tensor) -> Tensor:
        """Pool, unless every chunk was pooled behind the projector."""
        if self._chunks.pooled:
            self._chunks.pooled = False
            return tokens
        return self.original(tokens)
