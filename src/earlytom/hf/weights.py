"""Weighted tokens: a kept token that stands for many counts as many in the attention to it.

The logarithm of a weight is added to the attention logits of its column in every layer of the
language model, in prefill and in every later step (ToMe's proportional attention, section 3).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from earlytom.errors import UnsupportedModelError
from earlytom.hf.cache import expand_batch
from earlytom.hf.probe import BIASED, implementation_of, takes_bias
from earlytom.models.base import Adapter
from earlytom.stages import VideoState


class TokenWeights:
    """Carries log weights from stage II to the language model, beside the tokens themselves."""

    def __init__(self, adapter: Adapter, name: str) -> None:
        self.adapter = adapter
        self.name = name
        self._videos: list[Tensor] = []

    def start(self) -> None:
        """Forget the videos of the call before."""
        self._videos = []

    def add(self, video: VideoState, cells: Tensor, weight: Tensor | None) -> None:
        """Take over the tokens that stage II kept of the next video.

        Args:
            video: its frames and token grid.
            cells: ``[k]`` int64, slot * tokens per frame + patch of every token.
            weight: ``[k]`` above 0, None for 1.
        """
        # newlines included in all versions
        rows = self.adapter.video_placeholders(video.n_input, video.grid)
        bias = torch.zeros(rows, device=cells.device)
        if weight is not None:
            place = torch.arange(rows, device=cells.device)[:, None]
            place = self.adapter.take_tokens(place, video.n_input)[..., 0].flatten()
            bias[place[cells]] = weight.float().log()
        self._videos.append(bias)

    def of(self, visual: Tensor, rows: list[int], counts: list[int]) -> Tensor | None:
        """Return ``[batch, L]`` float32 log weights of the columns of a prompt.

        Args:
            visual: ``[batch, L]`` bool placeholders.
            rows: placeholders of every video of the prompt; those of the last call, or a multiple
                of them, each sequence repeated (beams). None is returned for any other.
            counts: placeholders of every sequence.
        """
        known = [len(v) for v in self._videos]
        order = _repeated(known, counts, len(rows) // max(1, len(known)))
        if not order or rows != [known[v] for v in order]:
            return None
        table = torch.cat([self._videos[v] for v in order]).to(visual.device)
        rank = (visual.flatten().cumsum(0) - 1).clamp_min(0).view(visual.shape)
        return torch.where(visual, table[rank], 0.0)

    def check(self) -> None:
        """Raise UnsupportedModelError if the model's attention takes no weights (any more)."""
        attention = self.adapter.attention(self.adapter.decoder_layers[0])
        if not takes_bias(attention):
            raise UnsupportedModelError(
                f"{self.name} weighs tokens, which needs {' or '.join(BIASED)} attention in "
                f"the language model, not {implementation_of(attention)}; use one, or put the "
                "method on again to have all tokens count alike"
            )


def _repeated(known: list[int], counts: list[int], times: int) -> list[int]:
    """Return the numbers of ``known`` videos in a batch where each sequence stands ``times`` times.

    Args:
        known: placeholders of every video.
        counts: placeholders of every sequence of the batch.
        times: repetitions, one behind the other; nothing is returned if that does not fit.
    """
    order: list[int] = []
    start = 0
    for count in counts[:: max(1, times)]:
        stop = start
        while stop < len(known) and sum(known[start:stop]) < count:
            stop += 1
        order += [*range(start, stop)] * times
        start = stop
    return order


def extend(bias: Tensor | None, new: Tensor | None, past: int, batch: int) -> Tensor | None:
    """Return the log weights of ``past`` columns and the ``new`` ones behind them."""
    if bias is None and new is None:
        return None
    history = None if bias is None else expand_batch(bias, batch)[:, :past]
    parts = [] if history is None else [history]
    device = parts[0].device if parts else new.device  # type: ignore[union-attr]
    missing = past - (0 if history is None else history.shape[1])
    parts.append(torch.zeros(batch, max(0, missing), device=device))
    if new is not None:
        parts.append(new.to(device))
    return torch.cat(parts, 1)


def weighted_mask(
    bias: Tensor, real: Tensor | None, past: Any, length: int, total: int, dtype: torch.dtype
) -> Tensor:
    """Return the causal mask ``[batch, 1, length, total]`` with log weights in it.

    Args:
        bias: ``[batch, w]`` log weights of the first columns; 0 behind them.
        real: ``[batch, w']`` bool, columns that are not padding; True behind them.
        past: columns in front of this step (a tensor for static caches).
        length: queries of this step.
        total: columns of the cache after this step, unused ones of a static cache included.
        dtype: of the queries.
    """
    batch, known = bias.shape
    device = bias.device
    low = torch.finfo(dtype).min
    row = bias.new_zeros(batch, total)
    row[:, : min(known, total)] = bias[:, :total]
    column = torch.arange(total, device=device)
    seen = column <= past + torch.arange(length, device=device)[:, None]
    allowed = seen[None].expand(batch, -1, -1)
    if real is not None:
        full = torch.ones(batch, total, dtype=torch.bool, device=device)
        full[:, : min(real.shape[1], total)] = real[:, :total]
        allowed = allowed & full[:, None]
    mask = row[:, None].expand(-1, length, -1).masked_fill(~allowed, low)
    return mask[:, None].to(dtype)
