"""The KV cache of a stream: finished tokens stay in it, open ones and questions come and go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from earlytom.errors import UnsupportedModelError
from earlytom.hf.cache import STATE, CacheState
from earlytom.hf.prompt import PromptSide
from earlytom.hf.weights import extend, weighted_mask
from earlytom.models.base import Adapter
from earlytom.ops.tensors import ceil_div
from earlytom.stream.tokens import Part, TokenMemory


class PromptCache:
    """Prefills the prompt of a stream piece by piece: text, finished tokens, open tokens, question.

    Positions are those of the engine: ``keep`` gives a token the place it has among all tokens of
    all frames since ``base``, divided by ``scale``; ``renumber`` counts 0..n-1.

    Args:
        adapter: of the model that answers.
        prefix: token ids in front of the video.
        newline: ``[dim]`` what follows the last video token.
        renumber: whether survivors get contiguous positions.

    Attributes:
        prefilled: columns that the language model has computed so far, in all.

    Raises:
        UnsupportedModelError: a language model whose cache cannot be cropped.
    """

    def __init__(
        self, adapter: Adapter, prefix: Sequence[int], newline: Tensor, renumber: bool
    ) -> None:
        kinds = set(getattr(adapter.language_model.config, "layer_types", None) or [])
        if kinds - {"full_attention"}:
            raise UnsupportedModelError(
                "a stream crops the KV cache, which needs full attention in every decoder layer; "
                f"found {sorted(kinds)}"
            )
        self.adapter, self.renumber = adapter, renumber
        self.prefix, self.newline = list(prefix), newline
        self.prefilled = 0
        language: Any = adapter.language_model
        self._embed = language.get_input_embeddings()
        self._cache = DynamicCache()
        self._parts: tuple[Part, ...] = ()
        self._base, self._scale = 0, 1
        self._bias: Tensor | None = None  # [1, w] of the first columns, 0 behind them

    @property
    def columns(self) -> int:
        """Columns that are in the cache."""
        return int(self._cache.get_seq_length())

    def tensors(self) -> list[Tensor]:
        """Return keys and values of all layers."""
        layers = [layer for layer in self._cache.layers if layer.is_initialized]
        return [x for layer in layers for x in (layer.keys, layer.values)]

    # ------------------------------------------------------------------ finished parts
    def sync(self, memory: TokenMemory) -> None:
        """Bring the cache to the state of a fresh prefill of what is remembered.

        What it holds is kept as far as nothing in front of it has changed: keys and values depend
        on all tokens before them, so behind the first part that is gone or thinned everything is
        computed anew.
        """
        parts, base, scale = memory.parts, memory.base, memory.scale
        known = 0
        if (base, scale) == (self._base, self._scale) or self.renumber:
            pairs = zip(self._parts, parts, strict=False)
            known = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))
        # an interrupted prefill must not leave a cache that is taken for complete
        self._parts, self._base, self._scale = parts[:known], base, scale
        self._crop(len(self.prefix) + sum(map(len, self._parts)))
        if not self.columns:
            self._feed(self._text(self.prefix), self._count(0, len(self.prefix)))
        if known < len(parts):
            new = parts[known:]
            self._feed(_features(new), self._positions(new), _bias(new))
            self._parts = parts

    def _crop(self, columns: int) -> None:
        """Keep the first ``columns``, also where an interrupted prefill has not come so far."""
        if columns <= 0:
            self._cache, self._bias = DynamicCache(), None
            return
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.keys = layer.keys[..., :columns, :]
                layer.values = layer.values[..., :columns, :]
        self._bias = None if self._bias is None else self._bias[:, :columns]

    # ------------------------------------------------------------------ questions
    @contextmanager
    def asked(self, rest: Sequence[Part], frames: int, suffix: Sequence[int]) -> Iterator[Any]:
        """Prefill the open parts and a question, but for its last token; take them off afterwards.

        Args:
            rest: open parts.
            frames: input frames so far: where the video ends.
            suffix: token ids behind the video, at least one.

        Yields:
            Arguments of ``model.generate`` or of the model: ``input_ids`` and ``past_key_values``.
        """
        columns = self.columns
        hooks: list[Any] = []
        try:
            text = self._text(suffix[:-1])
            embeds = [*([_features(rest)] if rest else []), self.newline[None].to(text), text]
            end = self._end(rest, frames)
            after = self._count(end, len(suffix))
            position = torch.cat([*([self._positions(rest)] if rest else []), after])
            self._feed(torch.cat(embeds), position, _bias(rest))
            side = PromptSide(self.adapter, self.renumber)
            module = self.adapter.language_model
            hooks = [
                module.register_forward_pre_hook(side.before_language_model, with_kwargs=True),
                module.register_forward_hook(side.after_language_model, with_kwargs=True),
            ]
            last = self._count(end + len(suffix), 1)[None]
            state = CacheState(None, self.columns, last, self.columns, bias=self._bias)
            setattr(self._cache, STATE, state)
            visual = self.columns + 1 - len(self.prefix) - len(suffix)
            ids = [*self.prefix, *[self.adapter.video_token_id] * visual, *suffix]
            yield {
                "input_ids": torch.tensor([ids], device=self.newline.device),
                "past_key_values": self._cache,
            }
        finally:
            for hook in hooks:
                hook.remove()
            if hasattr(self._cache, STATE):
                delattr(self._cache, STATE)
            self._crop(columns)

    def _end(self, rest: Sequence[Part], frames: int) -> int:
        """Position behind the last video token."""
        if self.renumber:
            return self.columns + sum(map(len, rest))
        places = (frames - self._base) * self.adapter.tokens_per_frame
        return len(self.prefix) + ceil_div(places, self._scale)

    # ------------------------------------------------------------------ columns
    def _positions(self, parts: Sequence[Part]) -> Tensor:
        if self.renumber:
            return self._count(self.columns, sum(map(len, parts)))
        places = torch.cat([p.cells for p in parts]) - self._base * self.adapter.tokens_per_frame
        return torch.div(places, self._scale, rounding_mode="floor") + len(self.prefix)

    def _count(self, start: int, n: int) -> Tensor:
        return torch.arange(start, start + n, device=self.newline.device)

    def _text(self, ids: Sequence[int]) -> Tensor:
        tokens = torch.tensor(list(ids), dtype=torch.int64, device=self.newline.device)
        found: Tensor = self._embed(tokens)
        return found

    def _feed(self, rows: Tensor, position: Tensor, bias: Tensor | None = None) -> None:
        """Prefill columns ``[n, dim]`` behind those of the cache; ``bias`` of the first of them."""
        past, n = self.columns, len(rows)
        # a mask: without one, some versions read gaps in positions as the ends of sequences
        mask: Tensor = torch.ones(1, past + n, dtype=torch.int64, device=rows.device)
        self._bias = extend(self._bias, None if bias is None else bias[None], past, 1)
        if self._bias is not None:
            mask = weighted_mask(self._bias, None, past, n, past + n, rows.dtype)
        try:
            self.adapter.language_model(
                inputs_embeds=rows[None],
                position_ids=position[None],
                attention_mask=mask,
                past_key_values=self._cache,
                use_cache=True,
            )
        except BaseException:
            self._crop(past)
            raise
        self.prefilled += n


def _features(parts: Sequence[Part]) -> Tensor:
    return torch.cat([p.features for p in parts])


def _bias(parts: Sequence[Part]) -> Tensor | None:
    if all(p.bias is None for p in parts):
        return None
    zeros = [p.features.new_zeros(len(p), dtype=torch.float32) for p in parts]
    return torch.cat([z if p.bias is None else p.bias for p, z in zip(parts, zeros, strict=True)])
