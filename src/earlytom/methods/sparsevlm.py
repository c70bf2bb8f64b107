"""SparseVLM: prune by the attention of the words that the video is about (ICML 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from earlytom.checks import check_ascending, check_choice, check_count
from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
from earlytom.methods.inner_tools import unreachable
from earlytom.ops.raters import (
    position_logits,
    rater_score,
    recycle,
    recycled_counts,
    split_kept,
    text_raters,
    unbiased_score,
)
from earlytom.ops.select import mask_index
from earlytom.ops.shares import scaled_layers, stage_shares
from earlytom.ops.tensors import exact
from earlytom.stages import InnerMerge, InnerPoint, InnerState

PUBLISHED_LAYERS, PUBLISHED_DEPTH = (2, 6, 15), 32
PUBLISHED_TOKENS = (300, 200, 110)  # of 576, the published "192"
MEMORY = "sparsevlm"


@register_method
@dataclass(frozen=True, kw_only=True)
class SparseVLM(Method):
    """SparseVLM: in three steps inside the language model, keep what the question looks at.

    Zhang et al., ICML 2025, arXiv 2410.04417, released as Gumpest/SparseVLMs@26a5f48. Text tokens
    behind the video that resemble it more than the average are *raters*. After given layers the
    visual tokens stay that the raters look at most. ``v1.5`` clusters the best of the others and
    keeps the means; ``v2.0`` divides attention by what position alone explains, trusts the
    strongest heads only and recycles nothing. The rank rule of version 1, whose counts depend on
    the prompt, is left out.

    Differences to the released code: ``exact`` (default) derives the counts from
    ``retention_ratio``, recycled tokens included, with the published proportions between the steps
    (released: tables for 576 tokens, recycled tokens on top). A recycled token takes the column and
    position of its cluster's centre, and positions stay (v1.5 released: behind the kept ones,
    positions renumbered). Densities look at 5 neighbours or more (released: as many as there are
    clusters, so that one or two clusters are decided by noise). ``v2.0`` divides by the softmax of
    the position logits (released: by the logits themselves, which cross 0). Under both policies:
    every sequence of a batch is treated on its own; visual tokens of all its videos compete; the
    random noise on densities is 0; where no text token is above the average, all of them rate.
    Newline tokens all stay and are not counted (``official``: they compete as visual tokens).

    Args:
        retention_ratio: visual tokens present / visual tokens of the uncompressed model, averaged
            over the layers of the language model (``budget="layers"``), or behind the last step.
        positions: see :class:`Method`; ``auto`` is ``renumber`` (nothing is dropped in front).
        policy: ``exact`` or ``official``.
        version: ``v1.5`` or ``v2.0``.
        layers: layers after which tokens are pruned; None: 2, 6, 15 of 32, scaled to the depth.
        kept: (official) tokens kept at every step; None: derived from ``retention_ratio``.
        heads: (v2.0) how many heads count.
        budget: ``layers``: ``retention_ratio`` is the average over layers; ``behind``: the share
            left behind the last step.

    Raises:
        ConfigError: a value out of range; a ratio that the layers in front of the first step exceed
            already; v2.0 on a model without one-dimensional rotary positions.
    """

    name: ClassVar[str] = "sparsevlm"
    signals: ClassVar[tuple[str, ...]] = ("text tokens",)
    token_count: ClassVar[str] = "known: all enter, pruned inside"
    citation: ClassVar[str] = "Zhang et al., ICML 2025, arXiv 2410.04417"
    url: ClassVar[str] = "https://github.com/Gumpest/SparseVLMs"

    policy: str = "exact"
    version: str = "v1.5"
    layers: tuple[int, ...] | None = None
    kept: tuple[int, ...] | None = None
    heads: int = 14
    budget: str = "layers"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))
        check_choice("version", self.version, ("v1.5", "v2.0"))
        check_choice("budget", self.budget, ("layers", "behind"))
        check_count("heads", self.heads)
        if self.layers is not None:
            check_ascending("layers", self.layers, 0)
            if not 1 <= len(self.layers) <= len(PUBLISHED_TOKENS):
                raise ConfigError(f"layers must name 1 to 3 layers, got {self.layers}")
        if self.kept is None:
            return
        if self.policy != "official":
            raise ConfigError('kept has no meaning under policy "exact"; leave it out')
        for count in self.kept:
            check_count("kept", count)
        if len(self.kept) != len(self.layers or PUBLISHED_LAYERS):
            raise ConfigError(f"kept needs one count per step, got {self.kept}")

    # ------------------------------------------------------------------ where and how many
    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        """Return the points behind the layers of :meth:`pruned_after`."""
        if self.retention_ratio == 1 and self.kept is None:
            return ()
        if self.kept is None:
            self.shares(n_layers)
        return tuple(InnerPoint(layer + 1) for layer in self.pruned_after(n_layers))

    @property
    def inner_positions(self) -> str:
        """``renumber`` as v1.5 was released, else ``keep``."""
        return "renumber" if (self.policy, self.version) == ("official", "v1.5") else "keep"

    def pruned_after(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers after which tokens are pruned.

        Raises:
            ConfigError: the language model has no such layer, or none behind it.
        """
        layers = self.layers
        if layers is None:
            layers = scaled_layers(PUBLISHED_LAYERS, PUBLISHED_DEPTH, n_layers)
        if not layers or layers[-1] >= n_layers - 1:
            raise ConfigError(
                f"sparsevlm cannot prune after layers {layers} of a language model of {n_layers} "
                f"layers (allowed: 0..{n_layers - 2})"
            )
        return layers

    def shares(self, n_layers: int) -> list[Fraction]:
        """Return the share of the visual tokens left behind every step.

        Raises:
            ConfigError: not reachable.
        """
        first = [layer + 1 for layer in self.pruned_after(n_layers)]
        profile, ratio = PUBLISHED_TOKENS[: len(first)], exact(self.retention_ratio)
        if self.budget == "behind":
            return [min(Fraction(1), ratio * p / profile[-1]) for p in profile]
        if ratio * n_layers <= first[0]:
            raise unreachable(self.name, first[0], n_layers)
        return stage_shares(ratio, n_layers, first, profile)

    def counts(self, state: InnerState) -> tuple[int, int, int]:
        """Return how many tokens are kept, recycled and made of the recycled at this point."""
        present, recycling = self.present(state), self.version == "v1.5"
        if self.kept is None:
            share = self.shares(state.n_layers)[state.point]
            total = max(1, math.ceil(share * state.uncompressed))
        else:
            total = self.kept[state.point]
        if self.policy == "exact":
            total = min(present, total)
            kept, made = split_kept(present, total) if recycling else (total, 0)
            return kept, max(made, recycled_counts(present - kept)[0]), made
        kept = min(total, present - 1)
        return kept, *(recycled_counts(present - kept) if recycling else (0, 0))

    def present(self, state: InnerState) -> int:
        """Return how many tokens compete."""
        return state.n_tokens if self.policy == "exact" else state.n_visual

    # ------------------------------------------------------------------ stage III
    def inner_start(self, state: InnerState) -> None:
        """Choose the raters; they are remembered by their distance to the end."""
        visual = mask_index(state.visual, state.n_visual)
        n = state.visual.numel()
        text = torch.arange(int(visual[-1]) + 1, n, device=visual.device)
        if not text.numel():  # nothing follows the video: the last column rates
            state.memory[MEMORY] = torch.ones_like(text.new_empty(1))
            return
        rows = state.hidden.index_select(0, text)
        raters = text_raters(state.hidden.index_select(0, visual), rows)
        state.memory[MEMORY] = n - text.index_select(0, raters)

    def inner_queries(self, state: InnerState) -> Tensor:
        """Return the raters' columns."""
        distance: Tensor = state.memory[MEMORY]
        return state.visual.numel() - distance

    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        """Keep the tokens that the raters look at most, recycle some of the others."""
        kept, taken, made = self.counts(state)
        present = self.present(state)
        if kept >= present or kept < 1:
            return None
        score = self.score(state)
        rivals = state.visual if self.policy == "official" else state.patch >= 0
        order = score.masked_fill(~rivals, -torch.inf).sort(descending=True, stable=True).indices
        stay = (~rivals).index_fill(0, order[:kept], True)
        n = score.shape[0] - present + kept
        if not made:
            return InnerMerge(mask_index(stay, n))
        pruned = order[kept:present]
        near = None if self.policy == "official" else max(5, made)
        _, centre, means = recycle(
            state.hidden.index_select(0, pruned),
            score.index_select(0, pruned),
            taken,
            made,
            near,
        )
        centre = pruned.index_select(0, centre)
        hidden = state.hidden.index_copy(0, centre, means)
        index = mask_index(stay.index_fill(0, centre, True), n + made)
        if self.policy == "exact":
            return InnerMerge(index, hidden.index_select(0, index))
        # the released order of contents: kept tokens, then the merged ones, on the same columns
        late = torch.zeros_like(order)
        late = late.index_copy(0, centre, torch.arange(1, made + 1, device=late.device))
        place = mask_index(state.visual.index_select(0, index), kept + made)
        source = index.index_select(0, place)
        source = source.index_select(0, late.index_select(0, source).sort(stable=True).indices)
        return InnerMerge(index, hidden.index_select(0, index.index_copy(0, place, source)))

    def score(self, state: InnerState) -> Tensor:
        """Return how much the raters look at every column ``[n]``."""
        if state.attention is None:
            raise ConfigError("sparsevlm needs attention rows, which this model does not give")
        if self.version == "v1.5":
            return rater_score(state.attention)
        if state.rotary is None:
            raise ConfigError("sparsevlm v2.0 needs one-dimensional rotary positions; use v1.5")
        queries = self.inner_queries(state)
        position = position_logits(state.rotary, queries)
        if self.policy == "exact":
            later = torch.arange(position.shape[1], device=position.device) > queries[:, None]
            position = position.masked_fill(later, -torch.inf).softmax(1)
        columns = mask_index(state.visual, state.n_visual)
        found = unbiased_score(
            state.attention.index_select(2, columns), position.index_select(1, columns), self.heads
        )
        score = torch.full(state.visual.shape, -torch.inf, device=found.device)
        return score.index_copy(0, columns, found)
