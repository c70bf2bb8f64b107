"""MustDrop, vision stage: merge windows of similar patches, keep the tokens attention looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from earlytom.checks import check_ratio
from earlytom.errors import ConfigError
from earlytom.method import register_method
from earlytom.methods.encoder_method import EncoderMethod, signal
from earlytom.ops.grouping import Grouping, descending
from earlytom.ops.received import received_attention
from earlytom.ops.spatial import match_windows, window_patches, window_similarity
from earlytom.stages import PatchReduction, PatchState


@register_method
@dataclass(frozen=True, kw_only=True)
class MustDrop(EncoderMethod):
    """The vision encoding stage of MustDrop: spatial merging, then key tokens.

    Liu et al., arXiv 2411.10803, in the port ModelTC/LightCompress@9701d03. Behind an early layer
    windows of 2 x 2 patches whose mean pairwise cosine is largest become one token each. Behind
    the last layer the key tokens stay, those that received most attention there (the encoders here
    have no class token to ask), and all others are dropped.

    Merging is by number, not by threshold, so that all frames have equally many tokens. ``exact``
    (default) merges the more similar half of the windows (``window_share``). ``official`` merges as
    many as the budget asks for, ``(patches - wanted) // 3`` as in the port, up to all windows; the
    port has no key tokens and so cannot go below a quarter. Rows and columns of an odd grid that
    fill no window stay as they are (port: error). The stages inside the language model (dual
    attention, output-aware cache) are not part of this.

    Args:
        retention_ratio: see :class:`Method`.
        positions: see :class:`Method`; ``auto`` is ``renumber``.
        policy: ``exact`` or ``official``.
        window: (height, width) of a window, more than one patch.
        window_share: (exact) share of the windows that are merged at most, in [0, 1].
        merge_layer: encoder layer (0-based) behind which windows are merged.

    Raises:
        ConfigError: a value out of range, or an encoder without that layer.
        VideoError: NaN or infinite hidden states.
    """

    name: ClassVar[str] = "mustdrop"
    signals: ClassVar[tuple[str, ...]] = ("hidden states",)
    citation: ClassVar[str] = "Liu et al., 2024, arXiv 2411.10803"
    url: ClassVar[str] = "https://github.com/liuting20/MustDrop"

    window: tuple[int, int] = (2, 2)
    window_share: float = 0.5
    merge_layer: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio("window_share", self.window_share, open_low=False)
        whole = (*self.window, self.merge_layer) if isinstance(self.window, tuple) else ()
        if len(whole) != 3 or not all(type(v) is int and v >= 0 for v in whole):
            raise ConfigError("window must be two integers and merge_layer an integer >= 0")
        if min(self.window) < 1 or self.window == (1, 1):
            raise ConfigError(f"window must hold more than one patch, got {self.window!r}")

    @property
    def reduce_place(self) -> str:
        """Return ``output``: behind the layer."""
        return "output"

    def points(self, n_layers: int) -> tuple[int, ...]:
        """Return the merge layer and the last layer."""
        if self.merge_layer >= max(1, n_layers - 1):
            raise ConfigError(
                f"merge_layer {self.merge_layer} must be in front of the last of {n_layers} layers"
            )
        return (self.merge_layer, n_layers - 1) if n_layers > 1 else (0,)

    def patch_signals(self) -> tuple[str, ...]:
        """Return queries and keys, for the attention received in the last layer."""
        return ("query", "key")

    def windows(self, grid: tuple[int, int], wanted: int) -> int:
        """Return how many windows of a frame are merged."""
        (height, width), (a, b) = grid, self.window
        there = (height // a) * (width // b)
        most = there if self.policy == "official" else int(self.window_share * there)
        return min(most, (height * width - wanted) // (a * b - 1))

    def counts(self, n_points: int, grid: tuple[int, int], wanted: int) -> tuple[int, ...]:
        """Return the tokens left after merging (if the encoder has two layers) and at the end."""
        merged = self.windows(grid, wanted) * (math.prod(self.window) - 1)
        return (math.prod(grid) - merged, wanted)[-n_points:]

    def reduce_to(self, hidden: Tensor, state: PatchState, left: int) -> PatchReduction:
        """Merge windows at the first of two points, drop all but the key tokens at the last."""
        n = hidden.shape[1]
        if state.layer != state.n_layers - 1:
            patches = window_patches(state.grid, self.window, hidden.device)
            count = (n - left) // (patches.shape[1] - 1)
            group = match_windows(window_similarity(hidden, patches), patches, n, count)
        else:
            query = signal(state.query, self.name)
            received = received_attention(
                query, signal(state.key, self.name), query.shape[-1] ** -0.5
            )
            group = Grouping.keep(descending(received)[:, :left].sort(dim=1).values)
        merged, size = group.merge(hidden, state.size)
        return PatchReduction(merged, group.target(n), size)
