"""LLaVA-PruMerge: keep tokens of high attention, merge similar ones into them (ICCV 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from earlytom.checks import check_choice, check_count, check_flag
from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
from earlytom.ops.budget import spread
from earlytom.ops.host import read_host
from earlytom.ops.neighbours import by_score, grid_places, merge_neighbours, outlier_share
from earlytom.ops.tensors import to_device
from earlytom.stages import TokenSelection, VideoFeatures

PUBLISHED, GRID = 32, 576  # tokens merged into each kept one, of so many (CLIP at 336 pixels)
FALLBACK = 1 / 8  # the released ratio where no token is an outlier


@register_method
@dataclass(frozen=True, kw_only=True)
class PruMerge(Method):
    """LLaVA-PruMerge and PruMerge+: tokens of high attention take in tokens with similar keys.

    Shang et al., ICCV 2025, arXiv 2403.15388, released as 42Shawn/LLaVA-PruMerge@097c041; here
    every frame is one image. Of every frame the tokens of highest attention stay; PruMerge+ adds
    evenly spaced ones. The tokens with the most similar keys (32 of 576) are added to each,
    weighted by their attention, and all tokens not kept become one more token.

    Differences to the released code, made for CLIP images: the vision encoders here have no class
    token, so received attention (mean over heads and queries of the last layer) takes the place of
    its single-head class attention, and head-mean keys, pooled like the features, that of the
    full-width keys; both act behind the projector. ``exact`` (default) keeps exactly
    ``max(1, ceil(r T S))`` tokens, the extra tokens counted, frames differing by at most one, and
    takes weighted *means* as the paper writes (the release leaves out the division). PruMerge+ then
    takes a quarter of a frame's tokens by attention and the others evenly from the rest.
    ``official`` keeps the counts and sums of the release (its grid of 575 becomes ``S - 1``).
    Under both policies tokens keep raster order (released: descending attention) and the extra
    token stands at the best place not kept. A ratio of 0 (released: crash) becomes 1/8, a grid step
    of 0 (crash) becomes 1.

    Args:
        retention_ratio: see :class:`Method`. ``official``: the released ``reduction_ratio``; one
            extra token per frame comes on top. Not looked at if ``adaptive``, except that 1 keeps
            everything.
        positions: see :class:`Method`; ``auto`` is ``renumber``.
        policy: ``exact`` or ``official``.
        plus: PruMerge+.
        adaptive: (official) the ratio is the share of outliers among all attention values.
        neighbours: tokens merged into each kept one; None: 32 under ``official``, else the same
            share of a frame as there (32 of 576; at 32 of 49 all tokens become alike).

    Raises:
        ConfigError: a value out of range, or no received attention or keys.
        VideoError: NaN or infinite features.
    """

    name: ClassVar[str] = "prumerge"
    citation: ClassVar[str] = "Shang et al., ICCV 2025, arXiv 2403.15388"
    url: ClassVar[str] = "https://github.com/42Shawn/LLaVA-PruMerge"

    policy: str = "exact"
    plus: bool = False
    adaptive: bool = False
    neighbours: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))
        if self.neighbours is not None:
            check_count("neighbours", self.neighbours)
        for name in ("plus", "adaptive"):
            check_flag(name, getattr(self, name))
        if self.adaptive and self.policy != "official":
            raise ConfigError('adaptive has no meaning under policy "exact"; leave it out')

    @property
    def exact_budget(self) -> bool:
        """Whether exactly ``token_budget(T, S)`` tokens are kept."""
        return self.policy == "exact"

    def score_layer(self, n_layers: int) -> int | None:
        """Return the last layer, as released."""
        return n_layers - 1

    def needs_keys(self) -> bool:
        """Return True: keys say which tokens are alike."""
        return True

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Choose and merge the tokens of one video; None keeps all (ratio 1)."""
        x, received, keys = video.features, video.received, video.keys
        n, size = x.shape[:2]
        wanted = self.token_budget(video.state.n_input, size)
        exact = self.exact_budget
        if self.retention_ratio == 1 or (exact and wanted >= n * size):
            return None
        if received is None or keys is None:
            raise ConfigError(
                "prumerge needs received attention and keys, which this model does not give"
            )
        score = read_host(received, x, received, keys)
        order = by_score(score)
        budgets = spread(wanted, n)
        if exact:
            kept = self.exact_places(order, budgets)
        else:
            kept = self.official_places(order, score, size - 1)
        # the extra token stands at the best place not kept
        extra = {
            t: t * size + int(row[~np.isin(row, kept[t])][0])
            for t, row in enumerate(order)
            if len(kept[t]) < size and not (exact and budgets[t] == 0)
        }
        values, rest = merge_neighbours(x, keys, received, kept, self._neighbours(size), mean=exact)
        places = [t * size + p for t in range(n) for p in kept[t]]
        weight = [1] * len(places) + [size - len(kept[t]) for t in extra]
        places += extra.values()
        rest = rest.index_select(0, to_device(list(extra), x.device))
        index, by_place = to_device(places, x.device).sort()
        return TokenSelection(
            index,
            torch.cat([values, rest]).index_select(0, by_place).to(x.dtype),
            to_device(weight, x.device, torch.float32).index_select(0, by_place),
        )

    def _neighbours(self, size: int) -> int:
        """Return how many tokens of a frame of ``size`` are merged into each kept one."""
        if self.neighbours is not None:
            return self.neighbours
        return PUBLISHED if self.policy == "official" else max(1, round(size * PUBLISHED / GRID))

    def exact_places(self, order: np.ndarray, budgets: tuple[int, ...]) -> list[list[int]]:
        """Return the places kept in every frame: one less than its budget, at least none."""
        kept = []
        for row, budget in zip(order, budgets, strict=True):
            count = max(0, budget - 1)
            top = -(-count // 4) if self.plus else count
            rest = np.sort(row[top:])
            even = (2 * np.arange(count - top) + 1) * len(rest) // max(1, 2 * (count - top))
            kept.append([*row[:top].tolist(), *rest[even].tolist()])
        return kept

    def official_places(self, order: np.ndarray, score: np.ndarray, bound: int) -> list[list[int]]:
        """Return the places kept in every frame, in the released order."""
        share = outlier_share(score) if self.adaptive else self.retention_ratio
        if share == 0 and self.plus:
            share = FALLBACK
        top = order[:, : int(order.shape[1] * share)]
        if not self.plus:
            return top.tolist()
        return [[*row.tolist(), *grid_places(row, share, bound).tolist()] for row in top]
