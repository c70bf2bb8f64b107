"""Deliberately simple methods that exercise every stage of the engine on their own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from earlytom.method import Method
from earlytom.ops.plan import MergePlan
from earlytom.stages import (
    InnerMerge,
    InnerPoint,
    InnerState,
    TokenSelection,
    VideoFeatures,
    VideoState,
)


@dataclass(frozen=True, kw_only=True)
class MergesAll(Method):
    """Averages all frames of a video into one, behind the first layer of the encoder."""

    name = "merges-all"

    def merge_points(self, n_layers: int) -> tuple[int, ...]:
        return (0,)

    def merge_frames(
        self, hidden: Tensor, state: VideoState, point: int, tokens_per_frame: int
    ) -> MergePlan:
        n = hidden.shape[0]
        return MergePlan(n, (tuple(range(n)),), ((1 / n,) * n,))


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """Keep every second frame, then evenly spaced tokens, then every second inner column."""

    merge_layers: tuple[int, ...] = ()
    score: int | None = None
    inner: int | None = None
    average: bool = False
    name = "toy"

    def merge_points(self, n_layers: int) -> tuple[int, ...]:
        return self.merge_layers

    def score_layer(self, n_layers: int) -> int | None:
        return self.score

    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        return () if self.inner is None else (InnerPoint(self.inner),)

    def merge_frames(
        self, hidden: Tensor, state: VideoState, point: int, tokens_per_frame: int
    ) -> MergePlan:
        n = hidden.shape[0]
        members = tuple(tuple(range(i, min(i + 2, n))) for i in range(0, n, 2))
        if self.average:
            weights = tuple((1.0 / len(m),) * len(m) for m in members)
        else:
            members = tuple(m[:1] for m in members)
            weights = ((1.0,),) * len(members)
        return MergePlan(n, members, weights)

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        if self.retention_ratio == 1:
            return None
        present = video.features.shape[0] * video.features.shape[1]
        want = self.token_budget(video.state.n_input, video.features.shape[1])
        index = torch.linspace(0, present - 1, min(want, present)).round().long()
        return TokenSelection(index)

    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        keep = ~state.visual | (state.visual.long().cumsum(0) % 2 == 0)
        return InnerMerge(keep.nonzero().flatten())


IDENTITY = Toy(retention_ratio=1.0)
TOYS: dict[str, Toy] = {
    "merge": Toy(retention_ratio=1.0, merge_layers=(1, 3)),
    "merge_average": Toy(retention_ratio=1.0, merge_layers=(1, 3), average=True),
    "merge_last_layer": Toy(retention_ratio=0.2, merge_layers=(5,)),
    "select": Toy(retention_ratio=0.25),
    "select_scored": Toy(retention_ratio=0.25, score=3),
    "merge_select": Toy(retention_ratio=0.1, merge_layers=(1, 3), score=3),
    "merge_select_keep": Toy(retention_ratio=0.1, merge_layers=(1, 3), positions="keep"),
    "merge_select_respace": Toy(retention_ratio=0.1, merge_layers=(1, 3), positions="respace"),
    "inner": Toy(retention_ratio=1.0, inner=2),
    "all": Toy(retention_ratio=0.1, merge_layers=(1, 3), score=3, inner=2),
}
