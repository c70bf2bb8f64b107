"""What one forward of the language model carries from its first hook to its last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from earlytom.hf.cache import CacheState
from earlytom.hf.columns import VideoColumns


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
        videos: the video columns (prompt only, and only where somebody will look at them).
    """

    state: CacheState
    past: Any
    length: int
    prompt: bool
    original: int = 0
    index: Tensor | None = None
    mask: Tensor | None = None
    videos: VideoColumns | None = None


@dataclass(frozen=True)
class Embeddings:
    """Compacted embeddings: ``x [batch, w, dim]``, right-aligned.

    Attributes:
        x: the embeddings, 0 in padding.
        index: ``[batch, w]`` caller's column of every column.
        mask: ``[batch, w]`` bool, real columns.
        counts: real columns of every row.
    """

    x: Tensor
    index: Tensor
    mask: Tensor
    counts: tuple[int, ...]


First = Callable[[Embeddings, VideoColumns], Embeddings]


def restore_columns(hidden: Tensor, step: Step) -> Tensor:
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
