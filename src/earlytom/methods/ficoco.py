"""FiCoCo-V: filter redundant tokens, correlate them with others, compress (AAAI 2026)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from earlytom.checks import check_ratio
from earlytom.method import register_method
from earlytom.methods.encoder_method import EncoderMethod, signal
from earlytom.ops.correlate import (
    favour,
    informative,
    joined_heads,
    least_of_window,
    sent_weights,
    strongest_targets,
    targets_per_token,
)
from earlytom.ops.correlate_released import ScoreGrid, released_layer
from earlytom.ops.grouping import Grouping, blend, rows_at
from earlytom.ops.schedule import equal_counts
from earlytom.ops.tensors import ceil_div, exact, full_precision
from earlytom.stages import PatchReduction, PatchState


@register_method
@dataclass(frozen=True, kw_only=True)
class FiCoCo(EncoderMethod):
    """FiCoCo-V: redundant tokens send their content to the tokens they attend to.

    Han et al., AAAI 2026, arXiv 2411.17686, kawhiiiileo/FiCoCo@8995e93. In each layer of the second
    half of the encoder but the last one the ``r`` most redundant tokens are removed. A token is
    redundant if its mean attention logit to the others is large and the logits it receives are
    small; the most redundant one of every 2 x 2 window is made more so, which spreads removals
    evenly. Its content goes to the tokens left that it attends to most:
    ``x_j <- (x_j + sum_i w_ij x_i) / (1 + sum_i w_ij)``.

    The encoders here have no class token. ``exact`` (default) puts the mean query of the frame in
    its place, keeps tokens in raster order and looks for targets among the tokens left.
    ``official`` is the released layer with its wrong indices: it takes the first token for the
    class token (:mod:`earlytom.ops.correlate_released`). Frames are separate in both (released:
    averaged). FiCoCo-L is not implemented: its attention is missing from the release.

    Args:
        retention_ratio: see :class:`Method`.
        positions: see :class:`Method`; ``auto`` is ``renumber``.
        policy: ``exact`` or ``official``.
        beta: share in [0, 1] of what a token receives in its score.
        quantile: a token sends its content to the targets above this quantile, at least to one.
        start: share of the depth in [0, 1] in front of the first reduction (12 of 26 layers).

    Raises:
        ConfigError: a value out of range.
        VideoError: NaN or infinite hidden states.
    """

    name: ClassVar[str] = "ficoco"
    signals: ClassVar[tuple[str, ...]] = ("hidden states",)
    citation: ClassVar[str] = "Han et al., AAAI 2026, arXiv 2411.17686"
    url: ClassVar[str] = "https://github.com/kawhiiiileo/FiCoCo"

    beta: float = 0.35
    quantile: float = 0.998
    start: float = 0.46

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "quantile", "start"):
            check_ratio(name, getattr(self, name), open_low=False)

    def points(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers from ``ceil(start L)`` to the last but one; at least one layer."""
        first = math.ceil(exact(self.start) * n_layers)
        end = max(1, n_layers - 1)
        return tuple(range(min(first, end - 1), end))

    def patch_signals(self) -> tuple[str, ...]:
        """Return queries and keys."""
        return ("query", "key")

    def counts(self, n_points: int, grid: tuple[int, int], wanted: int) -> tuple[int, ...]:
        """Return the tokens left after every point: each removes equally many."""
        return equal_counts(n_points, grid[0] * grid[1], wanted)

    def reduce_to(self, hidden: Tensor, state: PatchState, left: int) -> PatchReduction:
        """Remove the most redundant tokens and send their content on."""
        raw = signal(state.query, self.name)
        query, key = joined_heads(raw, signal(state.key, self.name), raw.shape[-1] ** -0.5)
        if self.policy == "official":
            return self._released(hidden, query, key, state, left)
        frames, n = hidden.shape[:2]
        device = hidden.device
        with full_precision(device):
            column = (key @ query.mean(1, keepdim=True).mT)[..., 0]
            row = (query @ key.mean(1, keepdim=True).mT)[..., 0]
        score = informative(column, row, self.beta)
        place = state.memory.get("place")
        if place is None:
            place = torch.arange(n, device=device).expand(frames, n)
        height, width = state.grid
        across = ceil_div(width, 2)
        window = torch.div(place, 2 * width, rounding_mode="floor") * across
        window = window + torch.div(place % width, 2, rounding_mode="floor")
        least = least_of_window(score, window, ceil_div(height, 2) * across)
        order = favour(score, least).sort(dim=1, stable=True).indices
        source = order[:, : n - left]
        kept = order[:, n - left :].sort(dim=1).values
        count = min(left, targets_per_token(left, self.quantile))
        target, weight = strongest_targets(rows_at(query, source), rows_at(key, kept), count)
        state.memory["place"] = place.gather(1, kept)
        sent = sent_weights(target, weight, left)
        ones = torch.ones(frames, left, device=device)
        merged, _ = blend(rows_at(hidden, kept), ones, rows_at(hidden, source), sent)
        # patches are counted as they are sent; a removed token belongs to its strongest target
        with full_precision(device):
            moved = (sent @ state.size.gather(1, source)[..., None])[..., 0]
        size = state.size.gather(1, kept) + moved
        return PatchReduction(merged, Grouping(kept, source, target[..., 0]).target(n), size)

    def _released(
        self, hidden: Tensor, query: Tensor, key: Tensor, state: PatchState, left: int
    ) -> PatchReduction:
        frames, n = hidden.shape[:2]
        grid = state.memory.get("grid")
        if grid is None:
            even = (2 * ceil_div(state.grid[0], 2), 2 * ceil_div(state.grid[1], 2))
            grid = state.memory["grid"] = ScoreGrid(frames, even, hidden.device)
        done = released_layer(hidden, query, key, n - left, grid, self.beta, self.quantile)
        group = Grouping(done.remaining, done.discarded, done.into[..., 0])
        return PatchReduction(done.hidden, group.target(n))
