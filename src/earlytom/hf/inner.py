"""Stage III: reduce visual columns at some points inside the language model, during prefill.

In front of a layer the columns that are gone are simply not passed on. Between attention and MLP
the second norm gets the columns left, a hook on the MLP puts its output aside and gives the layer
zeros, and a hook on the layer returns the sum: no forward is copied.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.clock import spanned
from earlytom.errors import UnsupportedModelError
from earlytom.hf.cache import InnerColumns, expand_batch, is_static
from earlytom.hf.columns import VideoColumns
from earlytom.hf.deepstack import METHOD as DEEPSTACK
from earlytom.hf.deepstack import DeepstackRegion
from earlytom.hf.hooks import hidden_states, with_hidden_states
from earlytom.hf.inner_masks import Behind, extend, whole_buffer
from earlytom.hf.points import check_points, source_layer
from earlytom.hf.prefill import Look, Prefill, Region, Rope
from earlytom.hf.probe import Sink
from earlytom.hf.prompt import PromptSide
from earlytom.hf.rows import LayerSignal, Seen
from earlytom.hf.steps import Embeddings, Step
from earlytom.method import Method
from earlytom.models.base import Adapter, find_submodule
from earlytom.stages import InnerPoint


class InnerSide:
    """Runs stage III of ``method`` at ``points``.

    Raises:
        ConfigError: points out of order or out of range.
        UnsupportedModelError: a part that a point needs is missing.
    """

    def __init__(
        self, adapter: Adapter, prompt: PromptSide, method: Method, points: tuple[InnerPoint, ...]
    ) -> None:
        self.adapter = adapter
        self.prompt = prompt
        self.method = method
        self.points = points
        self.depth = len(adapter.decoder_layers)
        self.renumber = method.inner_positions == "renumber"
        check_points(points, self.depth, self.renumber)
        self._front = {p.layer: i for i, p in enumerate(points) if not p.after_attention}
        self._middle = {p.layer: i for i, p in enumerate(points) if p.after_attention}
        # points passed before the attention of every layer
        self._passed = [
            sum(p.layer < i + (not p.after_attention) for p in points) for i in range(self.depth)
        ]
        self._own = {
            i: LayerSignal(layer, adapter.attention(layer))
            for i, layer in enumerate(adapter.decoder_layers)
            if i in self._front and points[self._front[i]].attention == "own"
        }
        self._rotary: Any = getattr(adapter.language_model, "rotary_emb", None)
        if self.renumber and adapter.position_axes > 1:
            raise UnsupportedModelError(
                f"{method.name} renumbers positions inside the language model; the positions of "
                f"{type(adapter.inner).__name__} have {adapter.position_axes} axes and must be kept"
            )
        if self.renumber and self._rotary is None:
            raise UnsupportedModelError("positions inside this model cannot be renumbered")
        self.finish()

    def finish(self) -> None:
        """Forget the forward that is over."""
        self.prefill: Prefill | None = None
        self._step: Step | None = None
        self._real: Tensor | None = None
        self._old: tuple[InnerColumns | None, ...] = ()
        self._behind: dict[int, Behind | None] = {}
        self._seen: Seen | None = None
        self._inputs: dict[str, Any] = {}
        self._kept: Tensor | None = None
        self._output: Tensor | None = None

    @property
    def layer_tokens(self) -> tuple[int, ...]:
        """Visual tokens (newline tokens not counted) with which every layer was entered."""
        return () if self.prefill is None else tuple(self.prefill.tokens[n] for n in self._passed)

    # ------------------------------------------------------------------ wiring
    def sinks(self) -> dict[int, Sink]:
        """What watches the attention of which decoder layer."""
        wanted = {source_layer(p) for p in self.points if p.attention != "none"} - self._own.keys()
        return {i: functools.partial(self.capture, i) for i in wanted}

    def install(self, handles: list[Any]) -> None:
        """Put the hooks on."""
        if hasattr(self.adapter.language_model, DEEPSTACK):
            handles.append(DeepstackRegion(self.adapter.language_model, self._present))
        for i, layer in enumerate(self.adapter.decoder_layers):
            if i >= self.points[0].layer:
                hook = functools.partial(self.before_layer, i)
                handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
            if i in self._middle:
                norm = find_submodule(layer, "post_attention_layernorm")
                inside = functools.partial(self.before_mlp, i)
                handles.append(norm.register_forward_pre_hook(inside))
                handles.append(find_submodule(layer, "mlp").register_forward_hook(self.after_mlp))
                # first, so that whoever records hidden states sees the columns left
                handles.append(layer.register_forward_hook(self.after_layer, prepend=True))

    def _present(self) -> Region | None:
        return None if self.prefill is None else self.prefill.region

    # ------------------------------------------------------------------ hooks
    @spanned("inner")
    def capture(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scaling: float,
        module: nn.Module,
    ) -> None:
        """Probe sink: keep queries and keys until the next point."""
        if self.prefill is not None:
            whole = query.detach()
            self._seen = Seen(
                layer, lambda b, place: whole[b].index_select(1, place), key.detach(), scaling
            )

    def at_embeddings(self, entry: Embeddings, videos: VideoColumns) -> Embeddings:
        """Show every sequence to the method, and act in front of layer 0 if asked to."""
        self.finish()
        region = Region(None, entry.mask, entry.counts)
        prefill = Prefill(self.method, self.points, self.depth, region, videos)
        self.prefill = prefill
        prefill.start(entry.x)
        done = prefill.act(0, entry.x, None, None) if 0 in self._front else None
        if done is None:
            return entry
        x, rows = done
        mask, counts = prefill.region.mask, prefill.region.counts
        prefill.region = Region(None, mask, counts)  # these are the columns of layer 0
        return Embeddings(x, entry.index.gather(1, rows), mask, counts)

    @spanned("inner")
    def before_layer(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of a decoder layer: act in front of it, give it the columns left."""
        step = self.prompt.step
        if step is None:
            return None
        hidden = hidden_states(args, kwargs)
        if self._step is not step:
            self._begin(step)
        self._inputs = kwargs
        point = self._front.get(index)
        if point is not None and index and self.prefill is not None:
            hidden = self._reduce(point, hidden, self.prefill)
        behind = self._layers_behind(self._passed[index] - 1, hidden)
        if behind is None:
            return None
        cache = kwargs.get("past_key_values")
        width = cache.layers[index].max_cache_len if is_static(cache) else None
        kwargs = {
            **kwargs,
            "position_embeddings": behind.rope(kwargs["position_embeddings"], hidden, self._rotary),
            "position_ids": behind.positions(kwargs.get("position_ids")),
            "attention_mask": behind.mask(kwargs.get("attention_mask"), hidden, width),
        }
        return with_hidden_states(args, kwargs, hidden)

    @spanned("inner")
    def before_mlp(self, index: int, module: nn.Module, args: Any) -> Any:
        """Pre-hook of the second norm: act between attention and MLP."""
        if self.prefill is None:
            return None
        hidden = self._reduce(self._middle[index], args[0], self.prefill)
        if hidden is args[0]:
            return None
        self._kept = hidden
        return (hidden, *args[1:])

    @spanned("inner")
    def after_mlp(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        """Put the output aside; the layer adds zeros to what it has."""
        if self._kept is None:
            return None
        self._output, self._kept = self._kept + output, None
        return output.new_zeros(1, 1, 1)

    @spanned("inner")
    def after_layer(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return what was put aside."""
        done, self._output = self._output, None
        if done is None:
            return None
        return (done, *output[1:]) if isinstance(output, tuple) else done

    # ------------------------------------------------------------------ cache columns
    def _begin(self, step: Step) -> None:
        self._step, self._behind = step, {}
        self._real = None if step.mask is None else step.mask.sum(1)
        self._old = step.state.inner or (None,) * len(self.points)
        if len(self._old) != len(self.points):
            raise UnsupportedModelError(
                "the cache was filled while another method was on; start with a fresh cache"
            )

    def _layers_behind(self, point: int, hidden: Tensor) -> Behind | None:
        """What layers behind ``point`` see, None if that is what layer 0 sees."""
        if point < 0:
            return None
        if point not in self._behind:
            old, made = self._old[point], None
            if old is not None:
                made = Behind(None, self._held(old, hidden), self._shifted(old.shift))
            self._behind[point] = made
        return self._behind[point]

    def _held(self, old: InnerColumns, hidden: Tensor) -> InnerColumns | None:
        """Columns owned after a step in which nothing is dropped, None where no mask needs them."""
        given = self._inputs.get("attention_mask")
        cache: Any = self._inputs.get("past_key_values")
        if given is None and old.valid is None and hidden.shape[1] == 1:
            return None
        if is_static(cache):  # its length is on the device: not asked for
            return whole_buffer(old, cache.layers[0].max_cache_len, hidden)
        return self._extend(old, None, None, hidden)

    def _extend(
        self, old: InnerColumns | None, rows: Tensor | None, valid: Tensor | None, like: Tensor
    ) -> InnerColumns:
        step = self._step
        assert step is not None
        return extend(old, step.state, int(step.past), step.length, rows, valid, like)

    def _shifted(self, shift: Tensor | None) -> Tensor | None:
        given: Tensor | None = self._inputs.get("position_ids")
        if shift is None or given is None:
            return None
        return given - expand_batch(shift, max(given.shape[0], shift.shape[0])).to(given.device)

    # ------------------------------------------------------------------ one point
    def _reduce(self, point: int, hidden: Tensor, prefill: Prefill) -> Tensor:
        """Act at ``point`` and remember what the layers behind it own."""
        step, old = self._step, self._old[point]
        assert step is not None
        rope = self._rope(point, hidden)
        done = prefill.act(point, hidden, rope, self._look(point, hidden, rope, prefill))
        region = prefill.region
        if done is not None:
            hidden, rows = done
            # the caller's geometry is restored from what really reaches the end
            assert step.index is not None
            step.index = step.index.gather(1, rows.to(step.index.device))
            step.mask = region.mask.to(step.index.device)
        owned, made = None, None
        if region.rows is not None or old is not None:
            owned = self._extend(old, region.rows, region.valid, hidden)
            position = self._renumbered(old, region, owned) if self.renumber else None
            made = Behind(region.rows, owned, position)
        self._behind[point] = made
        inner = list(step.state.inner or self._old)
        inner[point] = owned
        step.state.inner = tuple(inner)
        return hidden

    def _renumbered(self, old: InnerColumns | None, region: Region, owned: InnerColumns) -> Tensor:
        """Positions ``[batch, w]`` without gaps; also sets the shift of later steps."""
        given = self._inputs["position_ids"]
        assert self._real is not None
        if given.dim() != 2:
            raise UnsupportedModelError(
                "positions of several dimensions cannot be renumbered inside the language model"
            )
        mask = region.mask.to(given.device)
        batch, length = mask.shape[0], given.shape[1]
        given = given.expand(batch, -1)
        first = given.gather(1, (length - self._real).to(given.device)[:, None])
        if old is not None and old.shift is not None:
            first = first - expand_batch(old.shift, batch).to(given.device)
        position: Tensor = (mask.long().cumsum(1) - 1).clamp(min=0) + first
        owned.shift = given[:, -1:] - position[:, -1:]
        return position

    # ------------------------------------------------------------------ attention
    def _rope(self, point: int, hidden: Tensor) -> Rope | None:
        """Cos and sin ``[batch, w, d]`` in front of ``point``, None if not one-dimensional."""
        given: Rope | None = self._inputs.get("position_embeddings")
        if given is None:
            return None
        behind = self._behind.get(point - 1)
        if behind is not None:
            given = behind.rope(given, hidden, self._rotary)
        given = self.adapter.flat_rope(given)
        if given[0].dim() != 3:
            return None
        cos, sin = (x.to(hidden.device).expand(hidden.shape[0], -1, -1) for x in given)
        return cos, sin

    def _look(self, point: int, hidden: Tensor, rope: Rope | None, prefill: Prefill) -> Look | None:
        """Return what computes the rows that a method asks for, None if it wants none."""
        place = self.points[point]
        if place.attention == "none":
            return None
        layer = source_layer(place)
        if layer in self._own:  # the layer that follows has not run yet
            if rope is None:
                raise UnsupportedModelError(
                    f"the attention of layer {layer} needs one-dimensional rotary positions"
                )
            past, held = self._past(self._old[point], hidden), None
            if past is not None:
                held = self._inputs["past_key_values"].layers[layer].keys[:, :, : past.shape[1]]
            seen: Seen | None = self._own[layer].see(layer, hidden, rope, held)
        else:
            past = self._past(self._old[point - 1] if point else None, hidden)
            seen, self._seen = self._seen, None
        if seen is None or seen.layer != layer:
            raise UnsupportedModelError(f"stage III saw no attention of layer {layer}")
        counts, width, device = prefill.region.counts, hidden.shape[1], hidden.device

        def look(b: int, asked: Tensor | None) -> Tensor | None:
            rows = seen.rows(b, asked, width, counts[b], past)
            return None if rows is None else rows.to(device)

        return look

    def _past(self, old: InnerColumns | None, hidden: Tensor) -> Tensor | None:
        """``[batch, k]`` bool: earlier columns held that are real; None: there are none."""
        step = self._step
        assert step is not None
        if not int(step.past):
            return None
        held = extend(old, step.state, int(step.past), 0, None, None, hidden)
        return torch.ones_like(held.index, dtype=torch.bool) if held.valid is None else held.valid
