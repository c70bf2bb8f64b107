"""Stage III: merge visual columns in front of one decoder layer.

Layers behind it hold fewer cache columns than layer 0, by whose length transformers sizes every
mask. So the state on the cache remembers which layer-0 columns they own, and masks are gathered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import UnsupportedModelError
from earlytom.hf.cache import InnerColumns, expand_batch, is_static
from earlytom.hf.prompt import PromptSide, Step
from earlytom.method import Method


@dataclass
class _Columns:
    rows: Tensor | None  # [batch, m] columns of this step that stay; None: all of them
    rows_valid: Tensor | None
    owned: InnerColumns  # layer-0 columns behind the merge, this step included


class InnerSide:
    """Runs stage III of ``method`` in front of decoder layer ``layer``."""

    def __init__(self, prompt: PromptSide, method: Method, layer: int) -> None:
        self.prompt = prompt
        self.method = method
        self.layer = layer
        self.columns: tuple[int, int] | None = None
        self._last_row: Tensor | None = None
        self._now: _Columns | None = None

    # ------------------------------------------------------------------ signal
    def capture(
        self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, module: nn.Module
    ) -> None:
        """Probe sink one layer earlier: the last query's attention ``[batch, heads, columns]``."""
        step = self.prompt.step
        if step is None or not step.prompt:
            return
        with torch.no_grad():
            batch, heads, length, dim = query.shape
            last = query[:, :, -1].float().view(batch, key.shape[1], -1, dim)
            logits = torch.einsum("bghd,bgnd->bghn", last, key.float()) * scaling
            logits = logits.reshape(batch, heads, -1)
            if mask is not None:
                logits = _mask_last_row(logits, mask)
            self._last_row = logits.softmax(-1)[..., -length:]

    # ------------------------------------------------------------------ hooks
    def before_layer(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of decoder layer ``index >= layer``."""
        step = self.prompt.step
        if step is None:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        if index == self.layer:
            self._now = None
            if step.prompt:
                hidden = self._merge(hidden, step)
            elif step.state.inner is not None:
                self._now = _Columns(None, None, _extend(step, None, None, hidden))
        now = self._now
        if now is None:
            return None
        kwargs = dict(kwargs)
        if now.rows is not None:
            rows = now.rows.to(hidden.device)
            kwargs["position_embeddings"] = tuple(
                _gather_rows(e, rows) for e in kwargs["position_embeddings"]
            )
            position = kwargs.get("position_ids")
            if position is not None:
                kwargs["position_ids"] = position.expand(rows.shape[0], -1).gather(1, rows)
        cache = kwargs.get("past_key_values")
        width = cache.layers[index].max_cache_len if is_static(cache) else None
        kwargs["attention_mask"] = _column_mask(kwargs.get("attention_mask"), hidden, now, width)
        return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": hidden})

    def _merge(self, hidden: Tensor, step: Step) -> Tensor:
        last_row, self._last_row = self._last_row, None
        assert step.visual is not None
        if last_row is None:
            raise UnsupportedModelError("stage III saw no attention of the layer in front of it")
        batch, length, dim = hidden.shape
        kept: list[tuple[Tensor, Tensor]] = []
        for b, count in enumerate(step.counts):  # rows are right-aligned: slices, no sync
            start = length - count
            x = hidden[b, start:]
            done = self.method.merge_inner(
                x, last_row[b, :, start:].to(hidden.device), step.visual[b, start:].to(x.device)
            )
            if done is None:
                kept.append((torch.arange(start, length, device=x.device), x))
            else:
                value = x[done.index] if done.hidden is None else done.hidden.to(x.dtype)
                kept.append((done.index + start, value))
        width = max(index.numel() for index, _ in kept)
        rows = torch.zeros(batch, width, dtype=torch.long, device=hidden.device)
        valid = torch.zeros(batch, width, dtype=torch.bool, device=hidden.device)
        merged = hidden.new_zeros(batch, width, dim)
        for b, (index, value) in enumerate(kept):
            rows[b, width - index.numel() :] = index
            valid[b, width - index.numel() :] = True
            merged[b, width - index.numel() :] = value
        ragged = min(index.numel() for index, _ in kept) < width
        self.columns = (length, width)
        owned = _extend(step, rows, valid if ragged else None, hidden)
        step.state.inner = owned
        self._now = _Columns(rows, valid if ragged else None, owned)
        # the caller's geometry is restored from what really reaches the end
        assert step.index is not None
        step.index = step.index.gather(1, rows.to(step.index.device))
        step.mask = valid.to(step.index.device)
        return merged


def _extend(step: Step, rows: Tensor | None, valid: Tensor | None, hidden: Tensor) -> InnerColumns:
    """Layer-0 columns owned behind the merge after this step."""
    batch, device = hidden.shape[0], hidden.device
    past = int(step.past)
    old = step.state.inner
    if old is None:
        index = torch.arange(past, device=device).expand(batch, -1)
        known = None
    else:
        index = expand_batch(old.index, batch).to(device)
        known = None if old.valid is None else expand_batch(old.valid, batch).to(device)
        grown = past - old.anchor
        if grown >= 0:
            plain = torch.arange(old.anchor, past, device=device).expand(batch, -1)
            index = torch.cat([index, plain], 1)
            if known is not None:
                known = torch.cat([known, known.new_ones(batch, grown)], 1)
        else:  # cropped (assisted decoding) below what was known
            index = index[:, :grown]
            known = None if known is None else known[:, :grown]
    new = torch.arange(step.length, device=device).expand(batch, -1) if rows is None else rows
    joined = torch.cat([index, new.to(device) + past], 1)
    if known is None and valid is None:
        return InnerColumns(joined, None, past + step.length)
    known = torch.ones_like(index, dtype=torch.bool) if known is None else known
    valid = torch.ones_like(new, dtype=torch.bool) if valid is None else valid
    return InnerColumns(joined, torch.cat([known, valid.to(device)], 1), past + step.length)


def _gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Gather ``[..., batch or 1, n, d]`` along ``n`` by ``rows [batch, m]``."""
    lead = x.shape[:-3]
    x = x.expand(*lead, rows.shape[0], *x.shape[-2:])
    index = rows.to(x.device)[..., None].expand(*lead, *rows.shape, x.shape[-1])
    return x.gather(-2, index)


def _mask_last_row(logits: Tensor, mask: Tensor) -> Tensor:
    """Apply any mask form to the logits ``[batch, heads, columns]`` of the last query."""
    low = torch.finfo(logits.dtype).min
    if mask.dim() == 2:  # flash attention: padding mask
        return logits.masked_fill(~mask[:, None, -logits.shape[-1] :].bool(), low)
    row = mask[:, :, -1, : logits.shape[-1]]
    return logits.masked_fill(~row, low) if row.dtype == torch.bool else logits + row.float()


def _column_mask(mask: Any, hidden: Tensor, now: _Columns, width: int | None) -> Tensor | None:
    """Mask of the layers behind the merge, from the mask that transformers sized by layer 0."""
    batch, length = hidden.shape[:2]
    device = hidden.device
    columns = now.owned.index.to(device)
    valid = None if now.owned.valid is None else now.owned.valid.to(device)
    total = columns.shape[1]
    if isinstance(mask, Tensor) and mask.dim() == 4:
        mask = mask.to(device).expand(batch, *mask.shape[1:])
        low: Any = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        heads = mask.shape[1]
        if now.rows is not None:
            rows = now.rows.to(device)[:, None, :, None].expand(-1, heads, -1, mask.shape[-1])
            mask = mask.gather(2, rows)
        mask = mask.gather(3, columns[:, None, None, :].expand(-1, heads, mask.shape[2], -1))
        if valid is not None:
            mask = mask.masked_fill(~valid[:, None, None, :], low)
        if width is not None and width > total:  # static buffers: [owned | unused]
            mask = nn.functional.pad(mask, (0, width - total), value=low)
        return mask
    if isinstance(mask, Tensor) and mask.dim() == 2:  # flash attention: padding mask
        return None if valid is None else valid.long()
    if mask is not None:
        raise UnsupportedModelError(
            f"stage III cannot read an attention mask of type {type(mask).__name__}; "
            "use sdpa, eager or flash_attention_2"
        )
    if valid is None and (length == 1 or length == total):
        return None
    causal = torch.ones(length, total, dtype=torch.bool, device=device).tril(total - length)
    causal = causal[None, None].expand(batch, 1, -1, -1)
    return causal if valid is None else causal & valid[:, None, None, :]
