"""Positions of videos that are longer than the context of the language model.

Tokens that keep their places in a long video would stand where the model was never trained, though
few of them are left. So the places are interpolated into what it knows, as position interpolation
does for all tokens (Chen et al. 2023, arXiv:2306.15595); with most tokens gone, hardly any two that
are left come closer than neighbours are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from earlytom.hf.positions import positions_of
from earlytom.method import Method
from earlytom.models.base import Adapter
from earlytom.ops.select import mask_index

_SHARE = (7, 8)  # of the context; the rest is for text


def share_of_video(context: int) -> int:
    """Return how many of the ``context`` positions of a model are for a video."""
    return context * _SHARE[0] // _SHARE[1]


def video_room(adapter: Adapter | type[Adapter], method: Method, text: Any) -> int | None:
    """Return how many positions a video may take, None for no limit.

    Only ``positions="auto"`` of methods that keep places has one, in models with positions of one
    axis whose rotary embedding is not scaled already.

    Args:
        adapter: of the model, or its family.
        method: places the tokens.
        text: config of the language model.
    """
    if adapter.position_axes > 1 or method.asked_positions != "auto":
        return None
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    context = getattr(text, "max_position_embeddings", None)
    scaled = rope.get("rope_type", rope.get("type", "default")) != "default"
    if scaled or not context or positions_of(adapter, method) == "renumber":
        return None
    return share_of_video(int(context))


def span_of(total: int, left: int, room: int | None) -> int:
    """Return how many positions a video of ``total`` columns takes if ``left`` of them stay."""
    return total if room is None else min(total, max(room, left))


def squeezed(place: Tensor, total: int, span: int) -> Tensor:
    """Interpolate places into a shorter span; different ones stay different.

    Args:
        place: ``[k]`` int64, strictly ascending in ``[0, total)``.
        total: of the places.
        span: at least ``k``.

    Returns:
        ``[k]`` int64, strictly ascending in ``[0, span)``.
    """
    if span >= total:
        return place
    rank = torch.arange(place.numel(), device=place.device)
    gap = torch.div(place * span, total, rounding_mode="floor") - rank
    return rank + gap.cummax(0).values.clamp(max=span - place.numel())


def saved_positions(
    valid: Tensor, visual: Tensor, columns: Sequence[int], videos: Sequence[int], room: int
) -> Tensor | None:
    """Return ``[batch, L]`` int64: by how much the position of every column that stays is lowered.

    Args:
        valid: ``[batch, L]`` bool, columns that stay.
        visual: ``[batch, L]`` bool, placeholders of videos.
        columns: placeholders of every row.
        videos: placeholders of every video, in order.
        room: positions that a video may take.

    Returns:
        None if nothing is lowered.
    """
    if max(videos, default=0) <= room:  # usually; nothing is sorted then
        return None
    rows, edges, queue = [], [], list(videos)
    for b, count in enumerate(columns):
        place, start = mask_index(visual[b], count), 0
        while start < count and queue and start + queue[0] <= count:
            size = queue.pop(0)
            if size > room:
                rows.append(b)
                edges.append(place[[start, start + size - 1]])
            start += size
    if not rows:
        return None
    known, ends = valid.cumsum(1), torch.stack(edges)
    inside = known[rows].gather(1, ends)
    left = inside[:, 1] - inside[:, 0] + valid[rows].gather(1, ends[:, :1])[:, 0]
    found = torch.cat([ends, left[:, None]], 1).tolist()  # one sync
    saved = torch.zeros(valid.shape, dtype=torch.int64, device=valid.device)
    moved = False
    for b, (first, last, kept) in zip(rows, found, strict=True):
        total = last + 1 - first
        span = span_of(total, kept, room)
        place = mask_index(valid[b, first : last + 1], kept)
        saved[b, first + place] += place - squeezed(place, total, span)
        saved[b, last + 1 :] += total - span
        moved |= span < total
    return saved if moved else None
