"""Prompt side of the engine: remove marked columns in front of the language model, decode after it.

Position ids, masks and cache lengths of later steps are derived from the state on the cache, never
from what the caller passes, so ``generate`` and hand-written loops decode alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.clock import spanned
from earlytom.errors import VideoError
from earlytom.hf.cache import (
    STATE,
    CacheState,
    DecodeColumns,
    VirtualLengthLayer,
    compact,
    expand_batch,
    hide_compression,
    is_static,
    physical_length,
    removed_columns,
)
from earlytom.hf.columns import VideoColumns, VideoLayout
from earlytom.hf.context import saved_positions
from earlytom.hf.deepstack import cut_inputs
from earlytom.hf.positions import following, kept_positions, on_axes
from earlytom.hf.steps import Embeddings, First, Step, restore_columns
from earlytom.hf.weights import TokenWeights, extend, weighted_mask
from earlytom.models.base import Adapter
from earlytom.models.image_frames import FrameColumns
from earlytom.ops.rows import gather_masked
from earlytom.ops.select import mask_index
from earlytom.stages import Shape


class PromptSide:
    """Compacts prompts of ``adapter.language_model`` and keeps decoding consistent.

    Args:
        adapter: the live model.
        renumber: give survivors contiguous positions instead of their columns' own.
        inner: whether stage III will look at the prompt.
        decode: whether later steps choose from its visual columns.
        weights: brings the log weights of video tokens, or None.
        room: positions that a video may take (:func:`earlytom.hf.context.video_room`).
    """

    def __init__(
        self,
        adapter: Adapter,
        renumber: bool,
        inner: bool = False,
        decode: bool = False,
        weights: TokenWeights | None = None,
        room: int | None = None,
    ) -> None:
        self.adapter = adapter
        self.renumber = renumber
        self.watched = inner or decode or weights is not None
        self.weights = weights
        self.room = room
        self.squeezed = False  # whether the last prompt held a video longer than that
        self.decode = decode
        self.first: First | None = None  # sees the embeddings, may drop columns
        self.shapes: Callable[[list[Tensor]], list[Shape | None]] = lambda rows: [None] * len(rows)
        # for models that take frames as images: reads the prompt
        self.find_videos: Callable[[Tensor, dict[str, Any]], FrameColumns | None] | None = None
        self.step: Step | None = None
        self.columns: tuple[int, int] | None = None
        self._visual: Tensor | None = None
        self._layout: VideoLayout | None = None

    # ------------------------------------------------------------------ hooks
    @spanned("assemble")
    def before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Pre-hook of the multimodal model: remember which columns are video placeholders.

        Raises:
            VideoError: the prompt's placeholders do not fit the videos.
        """
        ids = kwargs.get("input_ids", args[0] if args else None)
        self._visual, self._layout = None, None
        if ids is None:
            return
        if self.find_videos is not None:
            images = self.find_videos(ids, kwargs)
            frames = [] if images is None else [n for _, n in images.videos]
            rows = [self.adapter.placeholder_count([n]) for n in frames]
            if images is not None and self._watches(rows):
                self._visual = images.visual
                known: list[Shape | None] = [(n, self.adapter.grid) for n in frames]
                self._layout = VideoLayout.of(self.adapter, rows, known)
            return
        self._visual = ids == self.adapter.video_token_id
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("video")  # generate encodes ahead
        if kwargs.get("pixel_values_videos") is not None:
            found_shapes = self.adapter.video_shapes(kwargs)
            rows = [self.adapter.video_placeholders(*shape) for shape in found_shapes]
            shapes: list[Shape | None] = [*found_shapes]
        elif encoded is not None:
            videos = self.adapter.read_features(encoded, [])
            rows = [len(r) for r in videos]
            shapes = self.shapes(videos) if self._watches(rows) else []
        else:
            return
        found, needed = int(self._visual.sum()), sum(rows)
        if found != needed:
            raise VideoError(
                f"the prompt holds {found} video placeholder tokens, but its videos need {needed}"
            )
        if self._watches(rows):
            self._layout = VideoLayout.of(self.adapter, rows, shapes)

    def _watches(self, rows: list[int]) -> bool:
        """Whether somebody has to know which columns are whose, with videos of so many ``rows``."""
        return self.watched or (self.room is not None and max(rows, default=0) > self.room)

    @spanned("assemble")
    def before_language_model(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of the language model: compact a prompt, or continue on a compressed cache."""
        self.step = None
        x = kwargs.get("inputs_embeds")
        visual, self._visual = self._visual, None
        layout, self._layout = self._layout, None
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
            prompt = self._read_prompt(x, kwargs.get("attention_mask"), past, visual, layout)
            if prompt.dropped or prompt.videos is not None:
                return args, self._compact(dict(kwargs), x, cache, state, past, prompt)
        if state is None:
            return None
        self.step = Step(state, past, length, prompt=False)
        return args, self._continue(dict(kwargs), x, cache, state, past)

    @spanned("assemble")
    def after_language_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Post-hook: restore the caller's ``[batch, length]``, leave the state on the cache."""
        step, self.step = self.step, None
        if step is None or output is None:
            return
        if step.prompt:
            output.last_hidden_state = restore_columns(output.last_hidden_state, step)
        cache = getattr(output, "past_key_values", None)
        if cache is not None and step.prompt:
            setattr(cache, STATE, step.state)
            hide_compression(cache, step.state.virtual)
            if step.state.shown is not None and isinstance(cache.layers[0], VirtualLengthLayer):
                cache.layers[0].tracked = True

    # ------------------------------------------------------------------ prompt
    def _read_prompt(
        self,
        x: Tensor,
        attention_mask: Any,
        past: int,
        visual: Tensor | None,
        layout: VideoLayout | None,
    ) -> _Prompt:
        batch, length, _ = x.shape
        real = _real_columns(attention_mask, batch, length, past, x.device)
        dropped = x[..., 0].isnan()
        valid = real & ~dropped
        history = None
        if past and isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            history = attention_mask[:, -length - past : -length].to(x.device, torch.bool)
        wanted = [valid, dropped]
        if visual is not None and layout is not None:
            visual = visual.to(x.device)
            patch, frame = layout.spread(visual)
            wanted += [visual & valid, (patch >= 0) & valid, patch >= 0, visual]
        counts = torch.stack([w.sum(1) for w in wanted]).tolist()  # one sync
        videos, saved = None, None
        if visual is not None and layout is not None and self.room is not None:
            saved = saved_positions(valid, visual, counts[5], layout.rows, self.room)
        if visual is not None and layout is not None and sum(counts[4]):
            entered, uncompressed = tuple(counts[3]), tuple(counts[4])
            bias = None
            if self.weights is not None:
                bias = self.weights.of(visual, layout.rows, counts[5])
            videos = VideoColumns(
                visual, patch, frame, counts[2], counts[3], entered, uncompressed, bias
            )
        return _Prompt(valid, videos, history, counts[0], sum(counts[1]) > 0, saved)

    def _compact(
        self,
        kwargs: dict[str, Any],
        x: Tensor,
        cache: Any,
        state: CacheState | None,
        past: int,
        prompt: _Prompt,
    ) -> dict[str, Any]:
        batch, length, _ = x.shape
        index, mask = compact(prompt.valid, max(prompt.counts))
        x = gather_masked(x, index, mask)  # 0 * NaN would poison the values of padding
        entry = Embeddings(x, index, mask, tuple(prompt.counts))
        videos = prompt.videos
        if videos is not None:
            videos.keep(index, mask, [0] * batch)
            if self.first is not None:
                entry = self.first(entry, videos)
                x, index, mask = entry.x, entry.index, entry.mask
        kept = index.shape[1]
        known = prompt.history if state is None else _history(state, past, batch)
        padded = min(entry.counts) < kept or known is not None
        history = mask.new_ones(batch, past) if known is None else known
        full = torch.cat([history, mask], 1)
        position, following, saved = self._positions(
            kwargs.get("position_ids"), index, mask, length, state, past, prompt.saved
        )
        offset = removed_columns(cache) if past and not is_static(cache) else 0
        cut_inputs(kwargs, index, mask)
        kwargs["inputs_embeds"] = x
        kwargs["position_ids"] = position
        kwargs["attention_mask"] = _two_d(full, offset) if padded else None
        if cache is None and not padded:
            # without mask and cache, transformers reads gappy positions as packed sequences
            kwargs["attention_mask"] = full.long()
        new = None if videos is None else videos.bias
        bias = extend(None if state is None else state.bias, new, past, batch)
        if bias is not None:
            width = cache.layers[0].max_cache_len if is_static(cache) else past + kept
            kwargs["attention_mask"] = self._weighted(
                bias, full if padded else None, past, x, width
            )
        virtual = length + (past if state is None else state.virtual + past - state.anchor)
        self.columns = (length, kept)
        self.step = Step(
            CacheState(
                mask=full if padded else None,
                anchor=past + kept,
                next_position=following,
                virtual=virtual,
                inner=() if state is None else state.inner,
                shown=self._shown(state, past, videos) if self.decode else None,
                bias=bias,
                saved=saved,
            ),
            past,
            kept,
            prompt=True,
            original=length,
            index=index,
            mask=mask,
            videos=videos,
        )
        return kwargs

    def _weighted(
        self, bias: Tensor, real: Tensor | None, past: Any, x: Tensor, width: int
    ) -> Tensor:
        """Causal mask with the log weights of the columns, for the rows ``x [batch, n, dim]``."""
        if self.weights is not None:
            self.weights.check()
        bias = expand_batch(bias, x.shape[0]).to(x.device)
        return weighted_mask(bias, real, past, x.shape[1], width, x.dtype)

    def _shown(
        self, state: CacheState | None, past: int, videos: VideoColumns | None
    ) -> DecodeColumns | None:
        """Physical layer-0 columns of the visual tokens, those of earlier turns first."""
        old = None if state is None else state.shown
        if videos is None:
            return old
        columns = [
            mask_index(row, count) + past
            for row, count in zip(videos.visual, videos.n_visual, strict=True)
        ]
        if old is not None:
            old = old.expand(len(columns))
            columns = [torch.cat(pair) for pair in zip(old.columns, columns, strict=True)]
        return DecodeColumns(columns, [{} for _ in columns])

    def _positions(
        self,
        given: Tensor | None,
        index: Tensor,
        mask: Tensor,
        length: int,
        state: CacheState | None,
        past: int,
        saved: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return positions of the survivors, the next free one, and how many were saved so far.

        The last two are ``[batch, 1]``; callers do not know of saved ones.
        """
        batch, axes = index.shape[0], self.adapter.position_axes
        earlier = None if state is None or state.saved is None else expand_batch(state.saved, batch)
        self.squeezed = saved is not None
        if self.renumber or given is None:
            start: Any = past
            if state is not None:
                start = expand_batch(state.next_position, batch) + (past - state.anchor)
            if self.renumber:
                position = (mask.long().cumsum(1) - 1).clamp(min=0) + start
            else:
                position = index + start
        else:
            position = kept_positions(given[..., -length:], index, axes)
            if earlier is not None:
                position = position - earlier
        if saved is not None:
            position = position - saved.gather(1, index)
            earlier = saved[:, -1:] + (0 if earlier is None else earlier)
        return on_axes(position, axes), following(position), earlier

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
        if state.bias is not None:
            width = cache.layers[0].max_cache_len if is_static(cache) else past + length
            kwargs["attention_mask"] = self._weighted(state.bias, mask, past, x, width)
        ahead = torch.arange(length, device=x.device)[None] + (past - state.anchor)
        position = expand_batch(state.next_position, batch) + ahead
        kwargs["position_ids"] = on_axes(position, self.adapter.position_axes)
        return kwargs


@dataclass(frozen=True)
class _Prompt:
    valid: Tensor
    videos: VideoColumns | None
    history: Tensor | None
    counts: list[int]
    dropped: bool
    saved: Tensor | None  # positions, see saved_positions


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
