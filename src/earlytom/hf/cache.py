"""Decode state that travels with the KV cache, and the cache layer that hides the compression.

After a compressed prefill the cache holds fewer columns than the caller's prompt. transformers
derives positions and mask sizes of later steps from the cache length, so the layer reports the
uncompressed ("virtual") length, by the same contract as transformers' own sliding-window layer.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

STATE = "_earlytom_state"


@dataclass
class CacheState:
    """What decoding on a compressed cache needs; beam search and deepcopy carry it along.

    Attributes:
        mask: ``[batch, columns]`` bool, real (not padding) layer-0 columns of the prompt, or None
            when there is no padding. Later columns are all real.
        anchor: physical layer-0 length at which ``next_position`` applies.
        next_position: ``[batch, 1]`` int64.
        virtual: uncompressed length at ``anchor``.
        inner: for every point of stage III, the columns that the layers behind it own (None: all);
            empty as long as no point was passed.
        shown: what a decode stage chooses from, or None.
        bias: ``[batch, columns]`` float32 log weights of the first layer-0 columns, or None.
        saved: ``[batch, 1]`` by how much positions are lower than the caller's since a video was
            squeezed into the context, or None.
    """

    mask: Tensor | None
    anchor: int
    next_position: Tensor
    virtual: int
    inner: tuple[InnerColumns | None, ...] = ()
    shown: DecodeColumns | None = None
    bias: Tensor | None = None
    saved: Tensor | None = None


@dataclass
class InnerColumns:
    """Layer-0 columns that the layers behind a point of stage III hold.

    Attributes:
        index: ``[batch, k]`` int64 layer-0 column of every column held.
        valid: ``[batch, k]`` bool (False: padding), or None when all are real.
        anchor: physical layer-0 length up to which this is known.
        shift: ``[batch, 1]`` by how much positions are lower behind the point, or None for 0.
    """

    index: Tensor
    valid: Tensor | None
    anchor: int
    shift: Tensor | None = None


@dataclass
class DecodeColumns:
    """Visual columns of every row of the cache, for methods that choose from them in every step.

    Attributes:
        columns: per row ``[n_visual]`` int64 ascending layer-0 columns.
        memory: per row, the method's scratch.
    """

    columns: list[Tensor]
    memory: list[dict[str, Any]]

    def expand(self, batch: int) -> DecodeColumns:
        """Repeat rows for beams, as :func:`expand_batch`; every one gets a memory of its own."""
        if len(self.columns) == batch:
            return self
        rows = [i // (batch // len(self.columns)) for i in range(batch)]
        return DecodeColumns(
            [self.columns[i] for i in rows], [copy.deepcopy(self.memory[i]) for i in rows]
        )


class VirtualLengthLayer(DynamicLayer):
    """A dynamic cache layer that reports the length the prompt had before compression."""

    offset = 0
    tracked = False  # whether somebody asks for `order`
    order: Tensor | None = None  # how beam search moved the rows since it was last asked
    keys: Tensor
    values: Tensor

    def get_seq_length(self, *args: Any) -> int:
        """Return the uncompressed length, 0 when empty."""
        if not self.is_initialized or not self.keys.numel():
            return 0
        return int(super().get_seq_length(*args)) + self.offset

    def get_mask_sizes(self, query_length: int, *args: Any) -> tuple[int, int]:
        """Return (columns that exist after this step, columns that were removed in front)."""
        return self.keys.shape[-2] + query_length, self.offset

    def crop(self, count: int) -> None:
        """Crop to ``count`` columns (older transformers) or by ``-count`` columns (newer)."""
        remove = count if count <= 0 else count - self.get_seq_length()
        if remove < 0:
            self.keys = self.keys[..., :remove, :]
            self.values = self.values[..., :remove, :]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Move the rows, and remember how if somebody asks for it."""
        super().reorder_cache(beam_idx)
        if self.tracked:
            old = self.order
            self.order = beam_idx if old is None else old[beam_idx.to(old.device)]


def is_static(cache: Any) -> bool:
    """Whether ``cache`` has preallocated buffers (``StaticCache``)."""
    return bool(getattr(cache, "is_compileable", False))


def removed_columns(cache: Any) -> int:
    """Columns that compression removed from layer 0 of ``cache``."""
    layers = getattr(cache, "layers", None)
    return int(getattr(layers[0], "offset", 0)) if layers else 0


def physical_length(cache: Any) -> Any:
    """Columns that layer 0 really holds (a tensor for static caches)."""
    if cache is None:
        return 0
    return cache.get_seq_length() - removed_columns(cache)


def hide_compression(cache: Any, virtual: int) -> None:
    """Make every dynamic layer of ``cache`` report ``virtual`` columns."""
    for layer in getattr(cache, "layers", []):
        if type(layer) is DynamicLayer:
            layer.__class__ = VirtualLengthLayer
        if isinstance(layer, VirtualLengthLayer):
            layer.offset = virtual - layer.keys.shape[-2]


def expand_batch(x: Tensor, batch: int) -> Tensor:
    """Repeat rows for beams: state of ``b`` prompts serves ``batch = b * beams`` rows."""
    return x if x.shape[0] == batch else x.repeat_interleave(batch // x.shape[0], 0)


def compact(valid: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Order that moves the valid columns right: ``[batch, L]`` bool -> index, mask ``[batch, w]``.

    ``width`` is the largest number of valid columns of a row (known to the caller, so that no
    synchronisation happens here). The order of the valid columns is kept.
    """
    order = torch.argsort(valid.to(torch.uint8), dim=1, stable=True)
    index = order[:, valid.shape[1] - width :]
    return index, valid.gather(1, index)
