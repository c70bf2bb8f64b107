"""IPCV: prune inside the vision encoder, reconstruct behind it, prune in the language model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from earlytom.checks import check_choice, check_count, check_ratio
from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
from earlytom.methods.inner_tools import keep_best, keep_seen, share_behind
from earlytom.ops.duplicates import least_duplicated
from earlytom.ops.reconstruct import Reconstruction, most_changed
from earlytom.ops.tensors import check_finite, exact
from earlytom.stages import InnerMerge, InnerPoint, InnerState, PatchReduction, PatchState

# Qwen2-VL of the release: 32 encoder layers, 28 decoder layers
RELEASED_ENCODER, RELEASED_DECODER = 32, 28
RELEASED_LAYER, RELEASED_REBUILT, RELEASED_INNER = 3, 7, 3
BEFORE, RECONSTRUCTION = "before", "reconstruction"
PIVOTS = (4, 4)


@register_method
@dataclass(frozen=True, kw_only=True)
class IPCV(Method):
    """Information-preserving compression of the vision encoder.

    Chen et al., arXiv 2512.18747, released as Perkzi/IPCV@29726f0. In front of encoder layer ``K``
    every frame keeps the patches that the layer before changed most. The next layers attend over
    the whole grid, in which a pruned patch has moved as much as its nearest kept patches have on
    average; their MLPs, and the layers behind, run on the kept patches only. Behind the encoder the
    grid is completed in the same way, so all tokens enter the language model. There FastV (or
    DART) prunes once, in front of a layer, to the ratio asked for.

    Differences to the released code: frames are pruned each on their own, to the same number of
    patches (as its InternVL variant; Qwen2-VL: over all frames jointly, which may empty a frame),
    neighbours are looked for in the frame; every sequence of a batch is pruned on its own. DART
    pivots are the columns of largest hidden state (released: largest key), and pivots count as
    kept, so the number is exact.

    Args:
        retention_ratio: visual tokens that a layer sees / visual tokens of the uncompressed model,
            averaged over the layers of the language model; with ``budget="behind"`` the share
            behind the pruning layer (released: ``1 - R``). 1 switches the method off.
        positions: see :class:`Method`.
        encoder_ratio: share of the patches of a frame that stays inside the encoder (released:
            ``1 - rho``).
        encoder_layer: encoder layer ``K`` (0-based, at least 1) in front of which patches are
            pruned; None: the released 3 of 32, scaled to the depth.
        rebuilt_layers: layers from ``K`` on whose attention sees the whole grid; None: the released
            7 of 32, scaled to the depth.
        neighbours: kept patches that a pruned one follows.
        pruner: ``fastv`` (attention of the last query) or ``dart`` (least duplicated).
        inner_layer: decoder layer in front of which tokens are pruned; None: the released 3 of 28,
            scaled to the depth.
        budget: what ``retention_ratio`` counts, ``layers`` or ``behind``.

    Raises:
        ConfigError: a value out of range, or a ratio that this depth cannot reach.
    """

    name: ClassVar[str] = "ipcv"
    signals: ClassVar[tuple[str, ...]] = ("hidden states",)
    token_count: ClassVar[str] = "known: all enter, pruned inside"
    citation: ClassVar[str] = "Chen et al., 2025, arXiv 2512.18747"
    url: ClassVar[str] = "https://github.com/Perkzi/IPCV"

    encoder_ratio: float = 0.35
    encoder_layer: int | None = None
    rebuilt_layers: int | None = None
    neighbours: int = 10
    pruner: str = "fastv"
    inner_layer: int | None = None
    budget: str = "layers"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio("encoder_ratio", self.encoder_ratio)
        check_count("neighbours", self.neighbours)
        check_choice("pruner", self.pruner, ("fastv", "dart"))
        check_choice("budget", self.budget, ("layers", "behind"))
        for name in ("encoder_layer", "inner_layer"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        rebuilt = self.rebuilt_layers
        if rebuilt is not None and (type(rebuilt) is not int or rebuilt < 0):
            raise ConfigError(f"rebuilt_layers must be an integer >= 0, got {rebuilt!r}")

    # ------------------------------------------------------------------ encoder
    @property
    def reduce_place(self) -> str:
        """Return ``input``: in front of the layer."""
        return "input"

    def restore_grid(self) -> bool:
        """Return True: all tokens enter the language model."""
        return True

    def reduce_layers(self, n_layers: int) -> tuple[int, ...]:
        """Return the layer in front of which patches are pruned and the one before it."""
        if self.retention_ratio == 1 or self.encoder_ratio == 1:
            return ()
        layer = self._first(n_layers)
        return (layer - 1, layer)

    def rebuild_layers(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers that attend over the whole grid."""
        count = self.rebuilt_layers
        if count is None:
            count = round(RELEASED_REBUILT * n_layers / RELEASED_ENCODER)
        first = self._first(n_layers)
        return tuple(range(first, min(first + count, n_layers)))

    def _first(self, n_layers: int) -> int:
        scaled = max(1, round(RELEASED_LAYER * n_layers / RELEASED_ENCODER))
        return scaled if self.encoder_layer is None else self.encoder_layer

    def reduce_patches(self, hidden: Tensor, state: PatchState) -> PatchReduction | None:
        """Remember ``[T, P, D]`` one layer earlier, then prune what has changed least.

        Raises:
            VideoError: NaN or infinite hidden states.
        """
        if state.point == 0:
            check_finite(hidden)
            state.memory[BEFORE] = hidden.detach()
            return None
        t, p, _ = hidden.shape
        count = max(1, int(exact(self.encoder_ratio) * p))
        kept = most_changed(hidden, state.memory.pop(BEFORE), count)
        done = Reconstruction.start(hidden, kept, self.neighbours)
        state.memory[RECONSTRUCTION] = done
        place = torch.arange(count, device=hidden.device).expand(t, -1)
        target = torch.full((t, p), -1, device=hidden.device).scatter(1, kept, place)
        return PatchReduction(done.before, target)

    def restore_patches(self, hidden: Tensor, state: PatchState) -> Tensor | None:
        """Return the whole grid ``[T, P, D]``, pruned patches reconstructed."""
        done: Reconstruction = state.memory[RECONSTRUCTION]
        return done.whole(hidden)

    # ------------------------------------------------------------------ language model
    def share(self, n_layers: int) -> tuple[int, Fraction]:
        """Return the layer that prunes and the share of the visual tokens kept behind it.

        Raises:
            ConfigError: the layers in front of it alone cost more than the ratio.
        """
        ratio, layer = exact(self.retention_ratio), self.inner_layer
        if layer is None:
            layer = max(1, round(Fraction(RELEASED_INNER * n_layers, RELEASED_DECODER)))
        if self.budget == "behind" or layer >= n_layers:  # the engine refuses such a layer
            return layer, ratio
        return layer, share_behind(self.name, ratio, layer, n_layers)

    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        """Return the point where tokens are pruned.

        Raises:
            ConfigError: the ratio cannot be reached.
        """
        if self.retention_ratio == 1:
            return ()
        layer, _ = self.share(n_layers)
        return (InnerPoint(layer, "previous" if self.pruner == "fastv" else "none"),)

    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        """Prune the video tokens; newline tokens stay and are not counted."""
        _, share = self.share(state.n_layers)
        count = max(1, math.ceil(share * state.uncompressed))
        if self.pruner == "fastv":
            return keep_seen(state, count, newlines=False)
        if count >= state.n_tokens:
            return None
        tokens = state.patch >= 0
        chosen = least_duplicated(state.hidden, tokens, count, PIVOTS)
        return InnerMerge(keep_best(chosen, tokens, state.n_tokens, count))
