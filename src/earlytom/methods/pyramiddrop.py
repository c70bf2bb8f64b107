"""PyramidDrop: fewer and fewer visual tokens towards the end of the language model (CVPR 2025)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from earlytom.checks import check_ascending, check_choice, check_ratio
from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
from earlytom.methods.inner_tools import keep_seen, unreachable
from earlytom.stages import InnerMerge, InnerPoint, InnerState

PUBLISHED_LAYERS, DEPTH = (8, 16, 24), 32
PUBLISHED_DECAY = 0.5
MEMORY = "pyramiddrop"


@register_method
@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Method):
    """PyramidDrop: at several layers keep a fixed share of the visual tokens still there.

    Xing et al., CVPR 2025, arXiv 2410.17247, released as Cooperx521/PyramidDrop@6444f30. In front
    of given layers the visual tokens are ranked by the attention of the last prompt token, computed
    with the norm, projections and rotary embedding of the layer that follows; the best stay. All
    tokens enter the language model.

    Differences to the released code: ``exact`` (default) solves the decay so that the average over
    layers is ``retention_ratio``, keeps positions, and leaves newline tokens alone. ``official``
    has the published decay 0.5 (or ``shares``) whatever ``retention_ratio`` is, truncates counts,
    lets newline tokens compete and renumbers positions after every drop. Under both policies
    grouped-query attention, padding on either side, batches and every attention backend work
    (released: full heads only, stale masks outside of FlashAttention 2), and keys are the only
    projection of all tokens.

    Args:
        retention_ratio: visual tokens present / visual tokens of the uncompressed model, averaged
            over the layers of the language model (the default is the published schedule's), or
            behind the last point.
        positions: see :class:`Method`; nothing is dropped in front of the language model.
        policy: ``exact`` or ``official``.
        layers: layers in front of which tokens are dropped; None: 8, 16, 24 of 32, scaled to the
            depth.
        shares: (official) share of all visual tokens left behind every point, descending; None:
            0.5, 0.25, 0.125.
        budget: ``layers``: ``retention_ratio`` is the average over layers; ``behind``: the share
            left behind the last point.

    Raises:
        ConfigError: a value out of range; an average that the first layers exceed already.
    """

    name: ClassVar[str] = "pyramiddrop"
    token_count: ClassVar[str] = "known: all enter, pruned inside"
    citation: ClassVar[str] = "Xing et al., CVPR 2025, arXiv 2410.17247"
    url: ClassVar[str] = "https://github.com/Cooperx521/PyramidDrop"

    retention_ratio: float = 0.46875
    policy: str = "exact"
    layers: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None
    budget: str = "layers"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))
        check_choice("budget", self.budget, ("layers", "behind"))
        if self.layers is not None:
            check_ascending("layers", self.layers, 1)
            if not self.layers:
                raise ConfigError("layers must name at least one layer")
        if self.shares is None:
            return
        if self.policy != "official":
            raise ConfigError('shares have no meaning under policy "exact"; leave them out')
        for share in self.shares:
            check_ratio("shares", share)
        if any(b > a for a, b in itertools.pairwise(self.shares)):
            raise ConfigError(f"shares must not ascend, got {self.shares}")

    @property
    def inner_positions(self) -> str:
        """``renumber`` as released, else ``keep``."""
        return "renumber" if self.policy == "official" else "keep"

    def prune_layers(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers in front of which tokens are dropped.

        Raises:
            ConfigError: the language model has no such layer.
        """
        layers = self.layers
        if layers is None:
            scaled = {round(Fraction(k * n_layers, DEPTH)) for k in PUBLISHED_LAYERS}
            layers = tuple(sorted(k for k in scaled if 1 <= k < n_layers))
        if not layers or layers[-1] >= n_layers:
            raise ConfigError(
                f"layers {layers} are out of range: the language model has {n_layers} layers "
                f"(allowed: 1..{n_layers - 1})"
            )
        if self.shares is not None and len(self.shares) != len(layers):
            raise ConfigError(f"{len(layers)} layers need as many shares, got {self.shares}")
        return layers

    def left_behind(self, n_layers: int) -> tuple[float, ...]:
        """Return the share of the visual tokens left behind every point.

        Raises:
            ConfigError: not reachable.
        """
        layers = self.prune_layers(n_layers)
        if self.shares is not None:
            return self.shares
        if self.policy == "official":
            decay = PUBLISHED_DECAY
        elif self.budget == "behind":
            decay = self.retention_ratio ** (1 / len(layers))
        else:
            wanted = self.retention_ratio * n_layers
            if wanted <= layers[0]:
                raise unreachable(self.name, layers[0], n_layers)
            decay = solve_decay(wanted, (0, *layers, n_layers))
        return tuple(decay ** (i + 1) for i in range(len(layers)))

    # ------------------------------------------------------------------ stage III
    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        """Return the points in front of :meth:`prune_layers`, none for a ratio of 1.

        Raises:
            ConfigError: no such layer, or the ratio cannot be reached.
        """
        layers, shares = self.prune_layers(n_layers), self.left_behind(n_layers)
        return () if shares[-1] == 1 else tuple(InnerPoint(k, "own") for k in layers)

    def inner_start(self, state: InnerState) -> None:
        """Remember how many visual tokens there were: the released counts refer to them."""
        state.memory[MEMORY] = state.n_visual

    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        """Keep the tokens that the last query looks at most."""
        share = self.left_behind(state.n_layers)[state.point]
        if self.policy == "official":
            return keep_seen(state, int(state.memory[MEMORY] * share), newlines=True)
        # a share solved in floats must not cost a token more: 0.25 * 48 is 12
        count = math.ceil(round(share * state.uncompressed, 6))
        return keep_seen(state, max(1, count), newlines=False)


def solve_decay(total: float, bounds: Sequence[int]) -> float:
    """Return ``d`` in (0, 1] with ``sum_i (bounds[i + 1] - bounds[i]) d^i = total``.

    Args:
        total: layers' worth of tokens to spend, in (bounds[1], bounds[-1]].
        bounds: first layers of the stages, 0 first, the depth last.
    """
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        spent = sum(n * middle**i for i, n in enumerate(lengths))
        low, high = (middle, high) if spent < total else (low, middle)
    return high
