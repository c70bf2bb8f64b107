"""PiToMe: merge tokens that have many near-duplicates, keep the others (NeurIPS 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from earlytom.checks import check_flag, check_ratio
from earlytom.method import register_method
from earlytom.methods.encoder_method import EncoderMethod, signal
from earlytom.ops.bipartite import match_halves
from earlytom.ops.energy import match_by_energy
from earlytom.ops.schedule import geometric_counts
from earlytom.stages import PatchReduction, PatchState


@register_method
@dataclass(frozen=True, kw_only=True)
class PiToMe(EncoderMethod):
    """Spectrum-preserving merging: of every frame, tokens in large clusters merge pairwise.

    Tran et al., NeurIPS 2024, arXiv 2405.16148, hchautran/PiToMe@550b5de. In every layer the
    energy of a token is its mean similarity to all others beyond a margin that falls with depth;
    the tokens of largest energy are split by rank, and one half merges into the other. Every layer
    keeps the same share of its tokens.

    ``exact`` (default) follows the paper: keys (mean over heads), between attention and MLP, means
    weighted by size, proportional attention, its energy function. ``official`` is the released
    path for CLIP in LLaVA: hidden states behind the layer, unweighted means, plain bipartite
    matching in the first half of the layers, the released energy (shifted by the margin). Both
    keep exactly what ``retention_ratio`` asks for; the release is given a share per layer.

    Args:
        retention_ratio: see :class:`Method`.
        positions: see :class:`Method`; ``auto`` is ``renumber``.
        policy: ``exact`` or ``official``.
        margin: similarity ``m_0`` in (0, 1]; layer ``l`` of ``L`` uses ``m_0 (1 - l / L)``.
        alpha: how much tokens below the margin count against a token, in (0, 1].
        proportional: whether attention adds ``log(size)`` to the logits of a key; not under
            ``official``.

    Raises:
        ConfigError: a value out of range, or too few layers: none can remove more than half.
        VideoError: NaN or infinite hidden states.
    """

    name: ClassVar[str] = "pitome"
    citation: ClassVar[str] = "Tran et al., NeurIPS 2024, arXiv 2405.16148"
    url: ClassVar[str] = "https://github.com/hchautran/PiToMe"

    margin: float = 0.9
    alpha: float = 1.0
    proportional: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio("margin", self.margin)
        check_ratio("alpha", self.alpha)
        check_flag("proportional", self.proportional)

    @property
    def reduce_place(self) -> str:
        """Return ``attention``, or ``output`` under ``official``."""
        return "attention" if self.policy == "exact" else "output"

    def patch_signals(self) -> tuple[str, ...]:
        """Return the keys, or nothing under ``official``."""
        return ("key",) if self.policy == "exact" else ()

    def proportional_attention(self) -> bool:
        """Whether later layers add ``log(size)`` to the logits."""
        return self.proportional and self.policy == "exact"

    def counts(self, n_points: int, grid: tuple[int, int], wanted: int) -> tuple[int, ...]:
        """Return the tokens left after every point: the same share in each."""
        return geometric_counts(n_points, grid[0] * grid[1], wanted)

    def reduce_to(self, hidden: Tensor, state: PatchState, left: int) -> PatchReduction:
        """Merge tokens of large energy."""
        n = hidden.shape[1]
        margin = self.margin * (1 - state.layer / state.n_layers)
        if self.policy == "exact":
            metric, size = signal(state.key, self.name).float().mean(1), state.size
            group = match_by_energy(metric, n - left, margin, self.alpha)
        else:
            size = torch.ones_like(state.size)
            if state.layer <= state.n_layers // 2:
                group = match_halves(hidden, n - left)
            else:
                group = match_by_energy(hidden, n - left, margin, self.alpha, shifted=True)
        merged, _ = group.merge(hidden, size)
        return PatchReduction(merged, group.target(n))
