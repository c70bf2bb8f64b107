"""FastV: drop the visual tokens that the last prompt token does not look at (ECCV 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from earlytom.checks import check_choice, check_count
from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
from earlytom.methods.inner_tools import keep_seen, share_behind
from earlytom.ops.tensors import exact
from earlytom.stages import InnerMerge, InnerPoint, InnerState

PUBLISHED_LAYER, DEPTH = 2, 28
DEEP = 16  # language models from this depth on use the published layer itself


@register_method
@dataclass(frozen=True, kw_only=True)
class FastV(Method):
    """FastV: once, inside the language model, keep the tokens that the last prompt token looks at.

    Chen et al., ECCV 2024, arXiv 2403.06764, released as pkunlp-icler/FastV@d165972. In front of
    layer ``layer`` the visual tokens are ranked by the attention that the last prompt token gives
    them one layer earlier (mean over heads); the best stay, with their positions. All tokens enter
    the language model.

    Differences to the released code: every sequence of a batch is treated on its own, all videos of
    a sequence compete, only the last row of the attention map is computed, and the causal mask
    stays whatever the attention backend is. ``exact`` (default) counts in exact fractions, keeps at
    least one token and leaves newline tokens alone; ``official`` rounds as released and lets
    newline tokens compete as visual tokens.

    Args:
        retention_ratio: visual tokens present / visual tokens of the uncompressed model, averaged
            over the layers of the language model (``budget="layers"``), or behind the point.
        positions: see :class:`Method`; nothing is dropped in front of the language model.
        policy: ``exact`` or ``official``.
        layer: language-model layer in front of which tokens are dropped; None: 2 in models of 16
            layers or more, else scaled to the depth, at least 1.
        budget: ``layers``: ``retention_ratio`` is the average over layers; ``behind``: the share
            kept behind the point (the released ``1 - R``).

    Raises:
        ConfigError: a value out of range; an average that the first layers exceed already.
    """

    name: ClassVar[str] = "fastv"
    token_count: ClassVar[str] = "known: all enter, pruned inside"
    citation: ClassVar[str] = "Chen et al., ECCV 2024, arXiv 2403.06764"
    url: ClassVar[str] = "https://github.com/pkunlp-icler/FastV"

    policy: str = "exact"
    layer: int | None = None
    budget: str = "layers"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))
        check_choice("budget", self.budget, ("layers", "behind"))
        if self.layer is not None:
            check_count("layer", self.layer)

    def prune_layer(self, n_layers: int) -> int:
        """Return the layer in front of which tokens are dropped.

        Raises:
            ConfigError: the language model has no such layer.
        """
        layer = self.layer
        if layer is None:
            scaled = round(Fraction(PUBLISHED_LAYER * n_layers, DEPTH))
            layer = PUBLISHED_LAYER if n_layers >= DEEP else max(1, scaled)
        if layer >= n_layers:
            raise ConfigError(
                f"layer {layer} is out of range: the language model has {n_layers} layers "
                f"(allowed: 1..{n_layers - 1})"
            )
        return layer

    def share(self, n_layers: int) -> Fraction:
        """Return the share of the visual tokens kept behind the point.

        Raises:
            ConfigError: not reachable.
        """
        ratio, first = exact(self.retention_ratio), self.prune_layer(n_layers)
        if self.budget == "behind":
            return ratio
        return share_behind(self.name, ratio, first, n_layers)

    # ------------------------------------------------------------------ stage III
    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        """Return the point in front of :meth:`prune_layer`, none for a ratio of 1.

        Raises:
            ConfigError: no such layer, or the ratio cannot be reached.
        """
        share, layer = self.share(n_layers), self.prune_layer(n_layers)
        return () if share == 1 else (InnerPoint(layer),)

    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        """Keep the tokens that the last query looks at most."""
        share = self.share(state.n_layers)
        if self.policy == "official":
            # binary floats and halves to even, as released
            ratio = self.retention_ratio if self.budget == "behind" else float(share)
            return keep_seen(state, round(state.n_visual * ratio), newlines=True)
        return keep_seen(state, max(1, math.ceil(share * state.uncompressed)), newlines=False)
