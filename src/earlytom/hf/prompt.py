"""Prompt side of the engine: remove marked columns in front of the language model, decode after it.

Position ids, masks and cache lengths of later steps are derived from the state on the cache, never
from what the caller passes, so ``generate`` and hand-written loops decode alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import VideoError
from earlytom.hf.cache import (
    STATE,
    CacheState,
    compact,
    expand_batch,
    hide_compression,
    is_static,
    physical_length,
    removed_columns,
)
from earlytom.models.base import Adapter


@dataclass
class Step:
    """Scratch of one language-model forward.

    Attributes:
        state: decode state that this step starts from (decode) or leaves behind (prompt).
        past: physical layer-0 columns before this step.
        length: columns of this step after compaction.
        prompt: True for a step that compacted (or may compact further inside) a prompt.
        original: columns of this step as the caller passed them.
        index: ``[batch, length]`` caller's column of every column (prompt only).
        mask: ``[batch, length]`` bool, real columns, right-aligned (prompt only).
        counts: real columns of every row (prompt only).
        visual: ``[batch, length]`` bool, video columns (prompt only).
    """

    state: CacheState
    past: Any
    length: int
    prompt: bool
    original: int = 0
    index: Tensor | None = None
    mask: Tensor | None = None
    counts: tuple[int, ...] = ()
    visual: Tensor | None = None


class PromptSide:
    """Compacts prompts of ``adapter.language_model`` and keeps decoding consistent.

    Args:
        adapter: the live model.
        renumber: give survivors contiguous positions instead of their columns' own.
        inner: whether stage III will look at the prompt.
    """

    def __init__(self, adapter: Adapter, renumber: bool, inner: bool) -> None:
        self.adapter = adapter
        self.renumber = renumber
        self.inner = inner
        self.step: Step | None = None
        self.columns: tuple[int, int] | None = None
        self._visual: Tensor | None = None

    # ------------------------------------------------------------------ hooks
    def before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Pre-hook of the multimodal model: remember which columns are video placeholders.

        Raises:
            VideoError: the prompt's placeholders do not fit the videos.
        """
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._visual = None if ids is None else ids == self.adapter.video_token_id
        if self._visual is None:
            return
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("video")  # generate encodes ahead
        if kwargs.get("pixel_values_videos") is not None:
            needed = self.adapter.placeholder_count(self.adapter.frame_counts(kwargs))
        elif encoded is not None:
            needed = sum(len(rows) for rows in self.adapter.read_features(encoded, []))
        else:
            return
        found = int(self._visual.sum())
        if found != needed:
            raise VideoError(
                f"the prompt holds {found} video placeholder tokens, but its videos need {needed}"
            )

    def before_language_model(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of the language model: compact a prompt, or continue on a compressed cache."""
        self.step = None
        x = kwargs.get("inputs_embeds")
        visual, self._visual = self._visual, None
        if x is None:
            return None
        cache = kwargs.get("past_key_values")
        state: CacheState | None = getattr(cache, STATE, None)
        length = x.shape[1]
        past = physical_length(cache)
        if length > 1:
            past = int(past)
            if past == 0:
                state = None  # a fresh or reset cache
            prompt = self._read_prompt(x, kwargs.get("attention_mask"), past, visual)
            if prompt.dropped or (self.inner and prompt.has_visual):
                return args, self._compact(dict(kwargs), x, cache, state, past, prompt)
        if state is None:
            return None
        self.step = Step(state, past, length, prompt=False)
        return args, self._continue(dict(kwargs), x, cache, state, past)

    def after_language_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Post-hook: restore the caller's ``[batch, length]``, leave the state on the cache."""
        step, self.step = self.step, None
        if step is None or output is None:
            return
        if step.prompt:
            output.last_hidden_state = _restore_columns(output.last_hidden_state, step)
        cache = getattr(output, "past_key_values", None)
        if cache is not None and step.prompt:
            setattr(cache, STATE, step.state)
            hide_compression(cache, step.state.virtual)

    # ------------------------------------------------------------------ prompt
    def _read_prompt(
        self, x: Tensor, attention_mask: Any, past: int, visual: Tensor | None
    ) -> _Prompt:
        batch, length, _ = x.shape
        real = _real_columns(attention_mask, batch, length, past, x.device)
        dropped = x[..., 0].isnan()
        video = torch.zeros_like(real) if visual is None else visual.to(x.device)
        valid = real & ~dropped
        history = None
        if past and isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            history = attention_mask[:, -length - past : -length].to(x.device, torch.bool)
        counts = torch.stack([valid.sum(1), dropped.sum(1), video.sum(1)]).tolist()  # one sync
        return _Prompt(valid, video, history, counts[0], sum(counts[1]) > 0, sum(counts[2]) > 0)

    def _compact(
        self,
        kwargs: dict[str, Any],
        x: Tensor,
        cache: Any,
        state: CacheState | None,
        past: int,
        prompt: _Prompt,
    ) -> dict[str, Any]:
        batch, length, dim = x.shape
        kept = max(prompt.counts)
        index, mask = compact(prompt.valid, kept)
        x = x.gather(1, index[..., None].expand(-1, -1, dim))
        x = x.masked_fill(~mask[..., None], 0)  # 0 * NaN would poison the values of padding
        known = prompt.history if state is None else _history(state, past, batch)
        padded = min(prompt.counts) < kept or known is not None
        history = mask.new_ones(batch, past) if known is None else known
        full = torch.cat([history, mask], 1)
        position, following = self._positions(
            kwargs.get("position_ids"), index, mask, length, state, past
        )
        offset = removed_columns(cache) if past and not is_static(cache) else 0
        kwargs["inputs_embeds"] = x
        kwargs["position_ids"] = position
        kwargs["attention_mask"] = _two_d(full, offset) if padded else None
        if cache is None and not padded:
            # without mask and cache, transformers reads gappy positions as packed sequences
            kwargs["attention_mask"] = full.long()
        virtual = length + (past if state is None else state.virtual + past - state.anchor)
        self.columns = (length, kept)
        self.step = Step(
            CacheState(
                mask=full if padded else None,
                anchor=past + kept,
                next_position=following,
                virtual=virtual,
                inner=None if state is None else state.inner,
            ),
            past,
            kept,
            prompt=True,
            original=length,
            index=index,
            mask=mask,
            counts=tuple(prompt.counts),
            visual=prompt.visual.gather(1, index) & mask,
        )
        return kwargs

    def _positions(
        self,
        given: Tensor | None,
        index: Tensor,
        mask: Tensor,
        length: int,
        state: CacheState | None,
        past: int,
    ) -> tuple[Tensor, Tensor]:
        """Return positions of the survivors and the next free position ``[batch, 1]``."""
        batch = index.shape[0]
        if self.renumber or given is None:
            start: Any = past
            if state is not None:
                start = expand_batch(state.next_position, batch) + (past - state.anchor)
            if self.renumber:
                position = (mask.long().cumsum(1) - 1).clamp(min=0) + start
            else:
                position = index + start
        else:
            own = given.to(index.device)[:, -length:]
            position = own.expand(batch, -1).gather(1, index)
        return position, position[:, -1:] + 1

    # ------------------------------------------------------------------ later steps
    def _continue(
        self, kwargs: dict[str, Any], x: Tensor, cache: Any, state: CacheState, past: Any
    ) -> dict[str, Any]:
        batch, length, _ = x.shape
        mask = None if state.mask is None else expand_batch(state.mask, batch)
        if is_static(cache):
            if mask is not None:
                width = cache.layers[0].max_cache_len
                rest = mask.new_ones(batch, width - mask.shape[1])
                kwargs["attention_mask"] = torch.cat([mask, rest], 1).long()
            elif isinstance(kwargs.get("attention_mask"), Tensor) and (
                kwargs["attention_mask"].dim() == 2
            ):
                kwargs["attention_mask"] = None
        elif mask is None:
            kwargs["attention_mask"] = None
        else:
            grown = mask.new_ones(batch, max(0, past - mask.shape[1]) + length)
            full = torch.cat([mask[:, :past], grown], 1)
            kwargs["attention_mask"] = _two_d(full, removed_columns(cache))
        ahead = torch.arange(length, device=x.device)[None] + (past - state.anchor)
        kwargs["position_ids"] = expand_batch(state.next_position, batch) + ahead
        return kwargs


@dataclass(frozen=True)
class _Prompt:
    valid: Tensor
    visual: Tensor
    history: Tensor | None
    counts: list[int]
    dropped: bool
    has_visual: bool


def _real_columns(mask: Any, batch: int, length: int, past: int, device: torch.device) -> Tensor:
    """Columns of this step that are not padding, from any mask form that ``generate`` passes."""
    if isinstance(mask, dict):
        mask = next(iter(mask.values()))
    if mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=device)
    if mask.dim() == 2:
        return mask[:, -length:].to(device, torch.bool)
    row = mask[:, 0, -1, past : past + length]  # 4-D: the last query sees every real column
    return (row if row.dtype == torch.bool else row == 0).to(device).expand(batch, -1)


def _history(state: CacheState, past: int, batch: int) -> Tensor | None:
    """Real columns ``[batch, past]`` of what the cache holds, None if all of them are."""
    if not past or state.mask is None:
        return None
    known = expand_batch(state.mask, batch)[:, :past]
    return torch.cat([known, known.new_ones(batch, past - known.shape[1])], 1)


def _two_d(full: Tensor, offset: int) -> Tensor:
    """2-D mask of the virtual width: ``offset`` removed columns in front, then the real ones."""
    return torch.cat([full.new_zeros(full.shape[0], offset), full], 1).long()


def _restore_columns(hidden: Tensor, step: Step) -> Tensor:
    """Spread ``[batch, kept, dim]`` over the caller's columns.

    A removed column shows the last survivor before it, so that the shifted loss of the first text
    token behind a video is computed from its true predecessor.
    """
    assert step.index is not None
    assert step.mask is not None
    index, mask = step.index, step.mask
    batch, kept = index.shape
    present = torch.zeros(batch, step.original, dtype=torch.long, device=index.device)
    present = present.scatter_add(1, index, mask.long()).clamp(max=1)
    slot = present.cumsum(1) - 1 + (kept - mask.sum(1, keepdim=True))
    slot = slot.clamp(min=0).to(hidden.device)
    return hidden.gather(1, slot[..., None].expand(-1, -1, hidden.shape[-1]))
