"""Vision side of the engine: fewer patch tokens inside the encoder.

Behind the projector the tokens left are set aside: the model pools and reshapes NaN rows of the
geometry it expects, and every token is written into a cell of that grid afterwards. A method that
goes on to select tokens gets the whole patch grid back instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.checks import check_ascending, check_choice
from earlytom.clock import spanned
from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.hf.chunks import Chunks
from earlytom.hf.patch_hooks import PatchHooks
from earlytom.hf.placing import place_tokens
from earlytom.hf.probe import BIASED, implementation_of, takes_bias
from earlytom.method import Method
from earlytom.models.base import Adapter
from earlytom.ops.cells import gather_rows, grid_coordinates, nearest_owner
from earlytom.ops.tensors import ceil_div
from earlytom.stages import PatchReduction, PatchState, TokenSelection
from earlytom.trace import note

PLACES = ("input", "attention", "output")
SIGNALS = ("query", "key")
_ANY_GRID = (16, 16)


@dataclass
class PatchCall:
    """State of one call of ``get_video_features``.

    Attributes:
        frames: frames of every video.
        videos: one state per video, empty before the first layer.
        passed: (layer, tokens per frame left) of every reduction.
        tokens: projected tokens ``[frames, m, dim]`` on their way around pooling, or None.
        around: tokens on their way around a pooling in front of the projector, or None.
        back: in a rebuilt layer, the patch that stands for each token present.
        kept: inside a layer, the tokens left (attention included).
        output: inside a layer, what it will return.
    """

    frames: list[int]
    videos: list[PatchState] = field(default_factory=list)
    passed: list[tuple[int, int]] = field(default_factory=list)
    tokens: Tensor | None = None
    around: Tensor | None = None
    back: Tensor | None = None
    kept: Tensor | None = None
    output: Tensor | None = None


class PatchSide:
    """Runs the patch reduction of ``method`` in the vision tower of ``adapter``.

    Raises:
        ConfigError: layers, place or signals that make no sense, or combined with frame merging.
        UnsupportedModelError: the encoder or its attention function does not allow it.
    """

    def __init__(self, adapter: Adapter, method: Method, chunks: Chunks) -> None:
        self.adapter = adapter
        self.method = method
        self.chunks = chunks
        self.layers = method.reduce_layers(adapter.usable_layers)
        self.rebuild = method.rebuild_layers(adapter.usable_layers) if self.layers else ()
        self.place = method.reduce_place
        # without a patch grid only whether the resolution is lowered counts: that is refused
        self.coarse = method.encoder_grid(adapter.grid if adapter.patch_grid else _ANY_GRID)
        self.restore = method.restore_grid()
        self.proportional = bool(self.layers) and method.proportional_attention()
        self.call: PatchCall | None = None
        if self.active:
            self._check()

    @property
    def active(self) -> bool:
        """Whether this method changes patches at all."""
        return bool(self.layers) or self.coarse is not None

    def _check(self) -> None:
        name, usable = self.method.name, self.adapter.usable_layers
        self.adapter.check_patches(f"{name} reduces patches")
        check_ascending("reduce_layers", self.layers, 0)
        check_ascending("rebuild_layers", self.rebuild, 0)
        check_choice("reduce_place", self.place, PLACES)
        self.adapter.check_encoder_layers((*self.layers, *self.rebuild))
        if self.method.merge_points(usable):
            raise ConfigError(f"{name} merges frames and reduces patches; only one is possible")
        if self.adapter.whole_grids:
            self._check_grids()
        if self.coarse is not None and not self.adapter.resizable:
            raise UnsupportedModelError(
                f"{name} lowers the resolution of frames, for which "
                f"{type(self.adapter.inner).__name__} has no position embeddings"
            )
        if self.coarse is not None and (self.layers or self.restore):
            raise ConfigError(f"{name} lowers the resolution; no other reduction goes with that")
        if self.coarse is not None and self.method.score_layer(usable) is not None:
            raise ConfigError(f"{name} lowers the resolution; no attention is received by patches")
        for layer in self.signal_layers:
            if layer < 0 or layer in self.rebuild:
                raise ConfigError(f"{name} has no attention of one layer to reduce patches by")
        if self.proportional:
            for i in range(usable):
                self.check_attention(self.adapter.layers[i])

    def _check_grids(self) -> None:
        name, kind = self.method.name, type(self.adapter.inner).__name__
        if self.layers and not self.restore:
            raise UnsupportedModelError(
                f"{name} leaves single tokens of a frame, but {kind} joins blocks of patches into "
                "a token; a method that selects tokens behind it gets the grid back (Compose)"
            )
        if self.coarse is not None and self.coarse[0] != self.coarse[1]:
            high, wide = self.coarse
            raise UnsupportedModelError(
                f"{name} lowers the resolution to {high} x {wide} tokens, but {kind} takes square "
                "frames only; choose another retention_ratio"
            )

    def check_attention(self, layer: nn.Module) -> None:
        """Raise UnsupportedModelError if the attention of ``layer`` cannot weigh its keys."""
        attention = self.adapter.attention(layer)
        if not self.adapter.masked_layers:
            raise UnsupportedModelError(
                f"proportional attention of {self.method.name} needs encoder layers that take an "
                f"attention mask, which {type(layer).__name__} does not"
            )
        if not takes_bias(attention):
            raise UnsupportedModelError(
                f"proportional attention of {self.method.name} needs one of "
                f"{', '.join(BIASED)} in the vision encoder, not {implementation_of(attention)}"
            )

    @property
    def passed(self) -> tuple[tuple[int, int], ...]:
        """(layer, patches per frame left) of every reduction of the running call."""
        return () if self.call is None else tuple(self.call.passed)

    @property
    def signal_layers(self) -> tuple[int, ...]:
        """Layers whose queries or keys the method wants."""
        if not self.method.patch_signals():
            return ()
        return tuple(i - (self.place == "input") for i in self.layers)

    def inside(self, layer: int) -> bool:
        """Whether patches change between the attention and the MLP of ``layer``."""
        return layer in self.rebuild or (layer in self.layers and self.place == "attention")

    def install(self, handles: list[Any]) -> None:
        """Put the hooks on the encoder and add their handles to ``handles``."""
        if self.active:
            PatchHooks(self).install(handles)

    @spanned("score")
    def capture(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, module: nn.Module
    ) -> None:
        """Probe sink of the signal layers: keep what the method wants until it reduces."""
        if self.call is None:
            return
        wanted = [s in self.method.patch_signals() for s in SIGNALS]
        both = zip((query, key), wanted, strict=True)
        measured = self.chunks.gather("patches", *(x.detach() if w else None for x, w in both))
        for signal, value in zip(SIGNALS, measured or (), strict=False):
            if value is not None:
                parts = value.split(self.call.frames)
                for state, part in zip(self._videos(query.device), parts, strict=True):
                    setattr(state, signal, part[:, :, self.adapter.class_tokens :])

    # ------------------------------------------------------------------ states
    def start(self, frames: list[int]) -> None:
        """Begin a call with videos of so many frames."""
        if self.active:
            self.call = PatchCall(list(frames))

    def _videos(self, device: torch.device) -> list[PatchState]:
        call, adapter = self.call, self.adapter
        assert call is not None
        if not call.videos:
            size = adapter.tokens_per_frame
            wanted = max(ceil_div(self.method.patch_budget(t, size), t) for t in call.frames)
            grid = adapter.patch_grid
            assert grid is not None
            if self.coarse is not None:
                grid = adapter.encoder_grid(self.coarse)
            call.videos = [
                PatchState.start(t, grid, adapter.usable_layers, wanted, device)
                for t in call.frames
            ]
        return call.videos

    def spread(self, video: int, values: Tensor) -> Tensor:
        """Give every patch the value ``[T, n, ...]`` of its owner, 0 without one."""
        if self.call is None:
            return values
        state = self._videos(values.device)[video]
        if not self.call.passed or values.shape[1] == state.patches:
            return values
        owner = state.owner.to(values.device)
        rows = gather_rows(values, owner.clamp_min(0))
        return rows.masked_fill((owner < 0).view(*owner.shape, *[1] * (rows.dim() - 2)), 0)

    def reduce(self, layer: int, hidden: Tensor) -> Tensor:
        """Let the method reduce ``[frames, class tokens + n, dim]`` in ``layer``."""
        call, name, classes = self.call, self.method.name, self.adapter.class_tokens
        assert call is not None
        left, changed = [], False
        parts = self.adapter.split_frames(hidden, call.frames)
        for x, state in zip(parts, self._videos(hidden.device), strict=True):
            state.size, state.owner = state.size.to(x.device), state.owner.to(x.device)
            state.layer, state.point = layer, self.layers.index(layer)
            done = self.method.reduce_patches(x[:, classes:], state)
            state.query = state.key = None
            if done is not None:
                _check_shapes(name, done, x[:, classes:])
                state.apply(done)
                kept = done.hidden.to(x.dtype)
                x, changed = torch.cat([x[:, :classes], kept], 1) if classes else kept, True
            left.append(x)
        if not changed:
            return hidden
        counts = sorted({x.shape[1] - classes for x in left})
        if len(counts) > 1:
            raise ConfigError(
                f"{name} left {', '.join(map(str, counts))} patches per frame in the videos of "
                "one call; it must be the same number in all of them"
            )
        call.passed.append((layer, counts[0]))
        return self.adapter.join_frames(left)

    def restored(self, hidden: Tensor, classes: int) -> Tensor:
        """Return ``[frames, classes + patches, dim]`` from the class tokens and what is left."""
        call = self.call
        assert call is not None
        whole = []
        parts = self.adapter.split_frames(hidden, call.frames)
        for whole_frame, state in zip(parts, call.videos, strict=True):
            x = whole_frame[:, classes:]
            full = self.method.restore_patches(x, state)
            if full is None:
                owner = state.owner.to(x.device)
                if bool((owner < 0).any()):
                    places = grid_coordinates(state.grid, x.device)
                    owner = nearest_owner(owner, x.shape[1], places)
                full = gather_rows(x, owner)
            full = full.to(x.dtype)
            whole.append(torch.cat([whole_frame[:, :classes], full], 1) if classes else full)
        return self.adapter.join_frames(whole)

    # ------------------------------------------------------------------ behind the encoder
    def before_projector(self, hidden: Tensor) -> Tensor:
        """Restore the patch grid if stage II is to select from it."""
        call = self.call
        if call is None:
            return hidden
        adapter, grid = self.adapter, self._videos(hidden.device)[0].grid
        classes = adapter.entry_class_tokens
        n = self._videos(hidden.device)[0].n_tokens + classes
        if hidden.shape[1] != n:
            raise UnsupportedModelError(
                f"the projector got {hidden.shape[1]} patches per frame where {n} were expected; "
                "vision_feature_layer or vision_feature_select_strategy of this call do not fit"
            )
        if not self.sparse:
            if not call.passed:
                return hidden
            note("restored", owner=call.videos[0].owner, grid=grid)
            return self.restored(hidden, classes)
        if adapter.pooler is None:
            return hidden
        # around the pooling, which wants a grid; one of lower resolution is pooled here
        call.around = adapter.pool(hidden, grid) if self.coarse is not None else hidden
        return hidden.new_zeros(()).expand(hidden.shape[0], adapter.patch_count, hidden.shape[2])

    @property
    def sparse(self) -> bool:
        """Whether tokens of this call stay apart until they are placed."""
        passed = self.call is not None and bool(self.call.passed)
        return not self.restore and (passed or self.coarse is not None)

    def after_pooler(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Hook of a module that pools in front of the projector: go on with the tokens left."""
        call = self.call
        if call is None or call.around is None:
            return None
        tokens, call.around = call.around, None
        return tokens

    def after_projector(self, output: Tensor) -> Tensor | None:
        """Set the projected tokens aside; the model goes on with NaN rows of full resolution."""
        call, classes = self.call, self.adapter.kept_class_tokens
        if call is None or not self.sparse:
            return None
        call.tokens = output[:, classes:]
        size = self.adapter.tokens_per_frame if self.chunks.pooled else self.adapter.projected
        rows = output.new_full((output.shape[0], size, output.shape[2]), float("nan"))
        return torch.cat([output[:, :classes], rows], 1) if classes else rows

    def selection(self, video: int) -> TokenSelection | None:
        """Return the tokens left of a video with their cells; None if there is nothing to place."""
        call = self.call
        if call is None or call.tokens is None:
            return None
        tokens = call.tokens.split(call.frames)[video]
        return place_tokens(tokens, call.videos[video], self.adapter, self.method)


def _check_shapes(name: str, done: PatchReduction, hidden: Tensor) -> None:
    t, n, dim = hidden.shape
    m = done.hidden.shape[1] if done.hidden.dim() == 3 else -1
    good = done.hidden.shape == (t, m, dim) and 1 <= m <= n and done.target.shape == (t, n)
    if not good or (done.size is not None and done.size.shape != (t, m)):
        raise ConfigError(
            f"{name} returned a patch reduction {tuple(done.hidden.shape)} with target "
            f"{tuple(done.target.shape)} for patches {(t, n, dim)}"
        )
