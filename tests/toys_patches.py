"""Deliberately simple methods that reduce patch tokens inside the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from earlytom.method import Method
from earlytom.stages import PatchReduction, PatchState, TokenSelection, VideoFeatures
from tests.toys import Toy


@dataclass(frozen=True, kw_only=True)
class ToyPatches(Method):
    """Reduce to the budget in equal steps: ``drop`` patches, or average runs of them.

    ``average`` takes runs in the order at hand, ``keys`` in the order of a number made of the
    layer's attention inputs, so that tokens stand for scattered patches.
    """

    name: ClassVar[str] = "toy-patches"
    exact_budget: ClassVar[bool] = True

    layers: tuple[int, ...] = (1, 3)
    place: str = "attention"
    mode: str = "drop"
    proportional: bool = False
    rebuild: tuple[int, ...] = ()
    score: int | None = None

    def reduce_layers(self, n_layers: int) -> tuple[int, ...]:
        return self.layers

    @property
    def reduce_place(self) -> str:
        return self.place

    def rebuild_layers(self, n_layers: int) -> tuple[int, ...]:
        return self.rebuild

    def score_layer(self, n_layers: int) -> int | None:
        return self.score

    def patch_signals(self) -> tuple[str, ...]:
        return ("key", "query") if self.mode == "keys" else ()

    def proportional_attention(self) -> bool:
        return self.proportional

    def reduce_patches(self, hidden: Tensor, state: PatchState) -> PatchReduction | None:
        if self.retention_ratio == 1:
            return None
        t, n, dim = hidden.shape
        steps = len(self.layers) - state.point
        m = state.wanted + (n - state.wanted) * (steps - 1) // steps
        if m == n:
            return None
        run = (torch.arange(n) * m // n).expand(t, -1)
        if self.mode == "drop":
            first = torch.cat([torch.ones(t, 1, dtype=torch.bool), run[:, 1:] > run[:, :-1]], 1)
            kept = hidden[first].view(t, m, dim)
            return PatchReduction(kept, run.masked_fill(~first, -1))
        if self.mode == "keys":
            assert state.key is not None
            assert state.query is not None
            assert state.key.shape[:1] + state.key.shape[2:3] == hidden.shape[:2]
            rank = (state.key - state.query).float().sum((1, 3)).argsort(dim=1, stable=True)
            run = torch.empty_like(rank).scatter(1, rank, run)
        size = torch.zeros(t, m).scatter_add(1, run, state.size)
        share = (state.size / size.gather(1, run))[..., None].to(hidden.dtype)
        mean = hidden.new_zeros(t, m, dim)
        mean = mean.scatter_add(1, run[..., None].expand(t, n, dim), hidden * share)
        return PatchReduction(mean, run)


class ToyRestored(ToyPatches):
    """Reduce patches, restore them behind the encoder, then select evenly spaced tokens."""

    name = "toy-restored"

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        return Toy.select_tokens(self, video)  # type: ignore[arg-type]


PATCH_TOYS: dict[str, ToyPatches] = {
    "patches-drop": ToyPatches(retention_ratio=0.25),
    "patches-drop-input": ToyPatches(place="input", layers=(0, 2), retention_ratio=0.4),
    "patches-drop-last": ToyPatches(place="output", layers=(5,), retention_ratio=0.4),
    "patches-average": ToyPatches(mode="average", place="output"),
    "patches-keys": ToyPatches(mode="keys", layers=(0, 2, 5), retention_ratio=0.4),
    "patches-keys-input": ToyPatches(mode="keys", place="input", proportional=True),
    "patches-keys-proportional": ToyPatches(mode="keys", proportional=True, layers=(1, 2)),
    "patches-rebuild": ToyPatches(place="input", layers=(2,), rebuild=(2, 3)),
    "patches-restored": ToyRestored(mode="keys", retention_ratio=0.4),
    "patches-restored-drop": ToyRestored(score=4, rebuild=(4,)),
}
