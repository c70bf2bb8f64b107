"""FrameFusion: merge what repeats over the first layers, then prune once (ICCV 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from earlytom.checks import check_choice, check_ratio
from earlytom.errors import BudgetError, ConfigError
from earlytom.method import Method, register_method
from earlytom.ops.fusion import (
    FIRST,
    allowed_sparsity,
    collapse_runs,
    similarity_in_time,
    time_order,
    top_mask,
)
from earlytom.ops.select import mask_index
from earlytom.ops.tensors import exact
from earlytom.stages import InnerMerge, InnerPoint, InnerState

RELEASED_LAYERS = 28
MEMORY = "framefusion"


@dataclass
class Progress:
    """What the steps of one prefill have done; lives in ``InnerState.memory``.

    Attributes:
        sparsity: share of the tokens present that every merging step removed.
        spent: tokens that the layers so far have seen, summed.
        merging: merging goes on.
        finished: nothing is left to do.
    """

    sparsity: list[float] = field(default_factory=list)
    spent: int = 0
    merging: bool = True
    finished: bool = False


@register_method
@dataclass(frozen=True, kw_only=True)
class FrameFusion(Method):
    """FrameFusion: inside the language model, merge what repeats, then prune what is overlooked.

    Fu et al., ICCV 2025, arXiv 2501.01986, released as thu-nics/FrameFusion@fbec1d2. In front of
    layer 0 and then between attention and MLP of layers 0, 1, ..., tokens whose state resembles
    that of the token at the same place of the frame before are averaged into it. When little is
    left to merge, the tokens that the last query looks at least are pruned, so many that the
    average over all layers is the ratio asked for. The first layers therefore see more, the others
    less.

    Differences to the released code: ``exact`` (default) counts layers and tokens of the model at
    hand (released: 28 layers, newline tokens counted as visual), keeps the average at or just below
    the ratio (layer 0 sees at least the tokens of one frame, every layer at least one), and never
    spends the budget up: if merging on would leave the later layers less than half of what
    finishing now gives them, it finishes now (released: an error once the budget is used up).
    Frames are compared within a video only; newline tokens all stay. Means are taken in float32
    (released: in place in the model's dtype). Under both policies tokens keep column and position,
    and every sequence of a batch is treated on its own (released: batch of 1).

    Args:
        retention_ratio: visual tokens that a layer sees / visual tokens of the uncompressed model,
            averaged over the layers of the language model (released: ``cost``).
        positions: see :class:`Method`; ``auto`` is ``renumber`` (nothing is dropped in front).
        policy: ``exact`` or ``official``.
        tau: tokens whose cosine to their predecessor is at least this are merged.
        least_merged: merging ends when a step merges less than this share of the tokens present.

    Raises:
        ConfigError: a value out of range.
        BudgetError: (official) the merging steps have used up the budget.
    """

    name: ClassVar[str] = "framefusion"
    signals: ClassVar[tuple[str, ...]] = ("hidden states",)
    token_count: ClassVar[str] = "known: all enter, merged inside as the video allows"
    citation: ClassVar[str] = "Fu et al., ICCV 2025, arXiv 2501.01986"
    url: ClassVar[str] = "https://github.com/thu-nics/FrameFusion"

    policy: str = "exact"
    tau: float = 0.6
    least_merged: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))
        check_ratio("tau", self.tau, low=-1.0, open_low=False)
        check_ratio("least_merged", self.least_merged, open_low=False)

    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        """Return the point in front of layer 0 and those behind the attention of all others."""
        if self.retention_ratio == 1:
            return ()
        after = (InnerPoint(i, "own", after_attention=True) for i in range(n_layers - 1))
        return (InnerPoint(0, "none"), *after)

    def inner_start(self, state: InnerState) -> None:
        """Start a new account."""
        state.memory[MEMORY] = Progress()

    def inner_queries(self, state: InnerState) -> Tensor | None:
        """Return the last column, or none where no attention is needed any more."""
        progress: Progress = state.memory[MEMORY]
        return state.visual.new_empty(0, dtype=torch.int64) if progress.finished else None

    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        """Do the next step: merge, prune, or nothing any more."""
        progress: Progress = state.memory[MEMORY]
        if progress.finished:
            return None
        present, most, share = self.allowance(state, progress)
        if share == 0:
            progress.finished = True
            return None
        hidden, gone = state.hidden, torch.zeros_like(state.visual)
        pruning, merged = not progress.merging, 0
        if progress.merging:
            column, similar = self.repeats(state)
            alike, followers = _host(similar >= self.tau, similar > FIRST)
            joined, merged = similar >= self.tau, alike
            if alike / present < share:
                progress.sparsity.append(alike / present)
                progress.merging = alike / present >= self.least_merged
                pruning = self.policy == "exact" and not self.may_go_on(state, progress, merged)
            else:
                joined, merged = top_mask(similar, most), most
                progress.finished = True
            if pruning and state.attention is None:  # in front of layer 0: merging must do
                merged = min(most, followers)
                joined, pruning, progress.merging = top_mask(similar, merged), False, False
                progress.finished = merged == most
            rows = collapse_runs(hidden.index_select(0, column), joined)
            hidden, gone = hidden.index_copy(0, column, rows), gone.index_copy(0, column, joined)
        if pruning:
            gone = self.prune(state, gone, present - most)
            progress.finished = True
        progress.spent += present - merged
        index = (~gone).nonzero().flatten()
        return InnerMerge(index, hidden.index_select(0, index))

    # ------------------------------------------------------------------ how much
    def allowance(self, state: InnerState, progress: Progress) -> tuple[int, int, float]:
        """Return the tokens present, how many of them may go if none go later, and what share.

        Raises:
            BudgetError: (official) the steps so far have used up the budget.
        """
        if self.policy == "official":
            present = state.n_visual
            try:
                share = allowed_sparsity(self.retention_ratio, RELEASED_LAYERS, progress.sparsity)
            except ValueError as e:
                raise BudgetError(
                    f'framefusion: {e}; raise retention_ratio or use policy="exact"'
                ) from e
            kept = round(present * (1 - share))
            return present, int(share * present) if progress.merging else present - kept, share
        present = state.n_tokens
        goal = int(self.budget_left(state, progress) / (state.n_layers - state.point))
        most = max(0, present - max(1, goal))
        return present, most, most / present

    def budget_left(self, state: InnerState, progress: Progress) -> Fraction:
        """Return how many tokens the layers to come may see, summed over them."""
        return exact(self.retention_ratio) * state.n_layers * state.uncompressed - progress.spent

    def may_go_on(self, state: InnerState, progress: Progress, merged: int) -> bool:
        """Whether enough is left for the later layers after one more layer sees what is there."""
        layers = state.n_layers - state.point
        left = self.budget_left(state, progress)
        rest = left - (state.n_tokens - merged)
        return layers > 1 and rest / (layers - 1) >= left / layers / 2

    # ------------------------------------------------------------------ what
    def repeats(self, state: InnerState) -> tuple[Tensor, Tensor]:
        """Return the visual columns by place and time, and how much each repeats the one before."""
        column = mask_index(state.visual, state.n_visual)
        video = (~state.visual).cumsum(0).index_select(0, column)
        if self.policy == "official":
            video = torch.zeros_like(video)
        order, follows = time_order(video, state.patch.index_select(0, column))
        column = column.index_select(0, order)
        return column, similarity_in_time(state.hidden.index_select(0, column), follows)

    def prune(self, state: InnerState, gone: Tensor, count: int) -> Tensor:
        """Return ``gone`` with all but the ``count`` tokens that the last query looks at most."""
        if state.attention is None:
            raise ConfigError("framefusion needs attention rows, which this model does not give")
        rivals = state.visual if self.policy == "official" else state.patch >= 0
        score = state.attention[:, -1].float().mean(0).masked_fill(~rivals | gone, -torch.inf)
        best = score.sort(descending=True, stable=True).indices[:count]
        return (rivals | gone).index_fill(0, best, False)


def _host(*masks: Tensor) -> list[int]:
    """Return how many are True in every mask, in one copy."""
    counts: list[int] = torch.stack([m.sum() for m in masks]).tolist()
    return counts
