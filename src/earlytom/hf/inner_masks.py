"""Masks and cache columns of the layers behind a point of stage III.

Those layers hold fewer cache columns than layer 0, by whose length transformers sizes every mask.
So the state on the cache remembers which layer-0 columns they own, and masks are gathered.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import UnsupportedModelError
from earlytom.hf.cache import CacheState, InnerColumns, expand_batch

Rope = tuple[Tensor, Tensor]


def extend(
    old: InnerColumns | None,
    state: CacheState,
    past: int,
    length: int,
    rows: Tensor | None,
    valid: Tensor | None,
    like: Tensor,
) -> InnerColumns:
    """Layer-0 columns owned behind a point after this step.

    Args:
        old: columns owned before this step; None: all.
        state: of the cache (padding of what it holds).
        past: physical layer-0 columns before this step.
        length: layer-0 columns of this step.
        rows: ``[batch, m]`` columns of this step that are left, None for all.
        valid: ``[batch, m]`` bool (False: padding), None when all are real.
        like: hidden states ``[batch, ...]``.
    """
    batch, device = like.shape[0], like.device
    if old is None:
        index = torch.arange(past, device=device).expand(batch, -1)
        known = None if state.mask is None else expand_batch(state.mask, batch)[:, :past]
        known = None if known is None or not past else known.to(device)
        if known is not None and known.shape[1] < past:
            known = torch.cat([known, known.new_ones(batch, past - known.shape[1])], 1)
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
    new = torch.arange(length, device=device).expand(batch, -1) if rows is None else rows
    joined = torch.cat([index, new.to(device) + past], 1)
    shift = None if old is None else old.shift
    if known is None and valid is None:
        return InnerColumns(joined, None, past + length, shift)
    known = torch.ones_like(index, dtype=torch.bool) if known is None else known
    valid = torch.ones_like(new, dtype=torch.bool) if valid is None else valid
    return InnerColumns(joined, torch.cat([known, valid.to(device)], 1), past + length, shift)


def whole_buffer(old: InnerColumns, width: int, like: Tensor) -> InnerColumns:
    """Layer-0 column of every place in a static buffer of ``width`` columns behind a point.

    Places not filled yet stand for columns to come, which the mask of layer 0 hides.
    """
    batch, device = like.shape[0], like.device
    index = expand_batch(old.index, batch).to(device)
    later = torch.arange(width - index.shape[1], device=device).expand(batch, -1) + old.anchor
    joined = torch.cat([index, later.clamp(max=width - 1)], 1)
    valid = torch.cat([torch.ones_like(index, dtype=torch.bool), later < width], 1)
    if old.valid is not None:
        known = expand_batch(old.valid, batch).to(device)
        valid = torch.cat([known, later < width], 1)
    return InnerColumns(joined, valid, old.anchor, old.shift)


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Gather ``[..., batch or 1, n, d]`` along ``n`` by ``rows [batch, m]``."""
    lead = x.shape[:-3]
    x = x.expand(*lead, rows.shape[0], *x.shape[-2:])
    index = rows.to(x.device)[..., None].expand(*lead, *rows.shape, x.shape[-1])
    return x.gather(-2, index)


def column_mask(
    mask: Any, hidden: Tensor, rows: Tensor | None, owned: InnerColumns, width: int | None
) -> Tensor | None:
    """Mask of a layer behind a point, from the mask that transformers sized by layer 0.

    Args:
        mask: 4-D mask, padding mask of a flash backend, or None.
        hidden: ``[batch, m, dim]`` input of the layer.
        rows: ``[batch, m]`` columns of this step that it holds, None for all.
        owned: layer-0 columns that the layer owns, this step included.
        width: columns of its static buffer, or None.

    Raises:
        UnsupportedModelError: another form of mask.
    """
    batch, length = hidden.shape[:2]
    device = hidden.device
    columns = owned.index.to(device)
    valid = None if owned.valid is None else owned.valid.to(device)
    total = columns.shape[1]
    if isinstance(mask, Tensor) and mask.dim() == 4:
        mask = mask.to(device).expand(batch, *mask.shape[1:])
        low: Any = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        heads = mask.shape[1]
        if rows is not None:
            chosen = rows.to(device)[:, None, :, None].expand(-1, heads, -1, mask.shape[-1])
            mask = mask.gather(2, chosen)
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


class Behind:
    """What layers behind a point see in this step; made once for all of them."""

    def __init__(
        self, rows: Tensor | None, owned: InnerColumns | None, position: Tensor | None
    ) -> None:
        self.rows = rows
        self.owned = owned
        self.position = position
        self._rope: Rope | None = None
        self._mask: tuple[Any, Tensor | None] | None = None

    def rope(self, given: Rope, hidden: Tensor, rotary: Any) -> Rope:
        """Cos and sin of the columns, from those of layer 0 or renumbered."""
        if self.position is None and self.rows is None:
            return given
        if self._rope is None:
            if self.position is not None:
                self._rope = rotary(hidden, self.position.to(hidden.device))
            else:
                assert self.rows is not None
                cos, sin = given
                self._rope = gather_rows(cos, self.rows), gather_rows(sin, self.rows)
        return self._rope

    def positions(self, given: Tensor | None) -> Tensor | None:
        """``position_ids`` of the columns."""
        if self.position is not None:
            return self.position
        if given is None or self.rows is None:
            return given
        rows = self.rows.to(given.device)
        wide = given.expand(*given.shape[:-2], rows.shape[0], -1)
        gathered: Tensor = wide.gather(-1, rows.expand(*wide.shape[:-1], -1))
        return gathered

    def mask(self, given: Any, hidden: Tensor, width: int | None) -> Any:
        """``attention_mask`` of the layers."""
        if self.owned is None:
            return given
        if self._mask is None or self._mask[0] is not given:
            self._mask = given, column_mask(given, hidden, self.rows, self.owned, width)
        return self._mask[1]
