"""Decode steps that see a choice of the visual columns (DyCoke): masks only, the cache is whole."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.clock import spanned
from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.hf.cache import DecodeColumns
from earlytom.hf.hooks import hidden_states
from earlytom.hf.probe import Sink, implementation_of
from earlytom.hf.prompt import PromptSide
from earlytom.hf.steps import Step
from earlytom.method import Method
from earlytom.models.base import Adapter


class DecodeSide:
    """Asks ``method`` at every decoded token what the layers from ``layer`` on may see.

    Steps of several tokens (a second turn, candidates of assisted decoding) see everything.

    Raises:
        ConfigError: ``layer`` out of range.
    """

    def __init__(self, adapter: Adapter, prompt: PromptSide, method: Method, layer: int) -> None:
        depth = len(adapter.decoder_layers)
        if not 1 <= layer < depth:
            raise ConfigError(
                f"decode layer {layer} is out of range; this language model allows 1..{depth - 1}"
            )
        self.adapter = adapter
        self.prompt = prompt
        self.method = method
        self.layer = layer
        self._cache: Any = None
        self._hidden: Tensor | None = None
        self._mask: tuple[Any, Tensor] | None = None

    def sinks(self) -> dict[int, Sink]:
        """What watches the attention of which decoder layer."""
        return {self.layer - 1: self.capture}

    def install(self, handles: list[Any]) -> None:
        """Put the hooks on."""
        for i, layer in enumerate(self.adapter.decoder_layers):
            if i >= self.layer - 1:
                hook = functools.partial(self.before_layer, i)
                handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    def finish(self) -> None:
        """Drop what this forward has collected."""
        self._cache = self._hidden = self._mask = None

    # ------------------------------------------------------------------ hooks
    @spanned("decode")
    def capture(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, module: nn.Module
    ) -> None:
        """Probe sink one layer earlier: ask the method."""
        step = self.prompt.step
        if step is None or step.prompt or step.length != 1 or step.state.shown is None:
            return
        with torch.no_grad():
            batch, heads, _, dim = query.shape
            last = query.float().view(batch, key.shape[1], -1, dim)
            logits = torch.einsum("bghd,bgnd->bghn", last, key.float()) * scaling
            rows = _masked(logits.reshape(batch, heads, -1), mask).softmax(-1)
            shown = self._shown(step, batch)
            hidden = torch.zeros(batch, rows.shape[-1], dtype=torch.bool, device=rows.device)
            for b, (columns, memory) in enumerate(zip(shown.columns, shown.memory, strict=True)):
                columns = columns.to(rows.device)
                if not columns.numel():
                    continue
                keep = self.method.decode_keep(rows[b].index_select(1, columns), memory)
                if keep is not None:
                    hidden[b].index_copy_(0, columns, ~keep.to(rows.device))
            self._hidden = hidden

    @spanned("decode")
    def before_layer(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of a decoder layer from ``layer - 1`` on."""
        if index < self.layer:
            self.finish()
            self._cache = kwargs.get("past_key_values")
            return None
        if self._hidden is None:
            return None
        given = kwargs.get("attention_mask")
        if self._mask is None or self._mask[0] is not given:
            x = hidden_states(args, kwargs)
            attention = implementation_of(self.adapter.attention(module))
            self._mask = given, hide(given, self._hidden.to(x.device), attention, x.dtype)
        return args, {**kwargs, "attention_mask": self._mask[1]}

    def _shown(self, step: Step, batch: int) -> DecodeColumns:
        """Columns and memory of every row of the cache, moved as beam search moved the rows."""
        assert step.state.shown is not None
        shown = step.state.shown.expand(batch)
        layers = getattr(self._cache, "layers", None)
        order = getattr(layers[0], "order", None) if layers else None
        if layers and order is not None:
            layers[0].order = None
            parents = order.tolist()  # beam search only
            memory = [copy.deepcopy(shown.memory[i]) for i in parents]
            shown = DecodeColumns([shown.columns[i] for i in parents], memory)
        step.state.shown = shown
        return shown


def hide(mask: Any, hidden: Tensor, attention: str, dtype: torch.dtype) -> Tensor:
    """Mask of one query that also hides columns ``hidden [batch, n]``.

    Args:
        mask: what the layer was given: 4-D, a padding mask, or None.
        hidden: True where a column must not be seen.
        attention: name of the attention implementation.
        dtype: of the hidden states, for implementations that add the mask.

    Raises:
        UnsupportedModelError: another form of mask.
    """
    if mask is None and "flash" in attention:
        return (~hidden).long()
    if mask is None and attention == "eager":
        low = torch.finfo(dtype).min
        return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, low)[:, None, None]
    if mask is None:
        return ~hidden[:, None, None]
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise UnsupportedModelError(
            f"a decode stage cannot read an attention mask of type {type(mask).__name__}; "
            "use sdpa, eager or flash_attention_2"
        )
    if mask.dim() == 2:
        return mask[:, -hidden.shape[1] :] * ~hidden
    columns = hidden[:, None, None, : mask.shape[-1]]
    low = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask.masked_fill(columns, low)


def _masked(logits: Tensor, mask: Any) -> Tensor:
    """Apply any mask form to the logits ``[batch, heads, columns]`` of the last query."""
    if mask is None:
        return logits
    low = torch.finfo(logits.dtype).min
    if mask.dim() == 2:  # flash attention: padding mask
        return logits.masked_fill(~mask[:, None, -logits.shape[-1] :].bool(), low)
    row = mask[:, :, -1, : logits.shape[-1]]
    return logits.masked_fill(~row, low) if row.dtype == torch.bool else logits + row.float()
