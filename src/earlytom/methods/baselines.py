"""Baselines that look at nothing: random and uniform selection, average pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
from earlytom.ops.lattice import coarser_grid, lattice, places
from earlytom.ops.pooling import pool_grid
from earlytom.ops.select import evenly, mask_index
from earlytom.ops.tensors import check_finite, to_device
from earlytom.stages import TokenSelection, VideoFeatures


@dataclass(frozen=True, kw_only=True)
class Baseline(Method):
    """A selection that depends on the shape of a video and on ``token_budget`` only."""

    exact_budget: ClassVar[bool] = True

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Choose the tokens of one video; None keeps all.

        Raises:
            VideoError: NaN or infinite features.
        """
        n, size = video.features.shape[:2]
        wanted = self.token_budget(video.state.n_input, size)
        if wanted >= n * size:
            return None
        check_finite(video.features)
        return self._choose(video, wanted)

    def _choose(self, video: VideoFeatures, wanted: int) -> TokenSelection:
        raise NotImplementedError


@register_method
@dataclass(frozen=True, kw_only=True)
class RandomTokens(Baseline):
    """Random tokens, the same ones for every video of the same size (exact budget).

    Args:
        retention_ratio: see :class:`Method`.
        positions: see :class:`Method`.
        seed: seed of the choice; it does not depend on the device.

    Raises:
        ConfigError: a value out of range.
    """

    name: ClassVar[str] = "random"

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ConfigError(f"seed must be an integer >= 0, got {self.seed!r}")

    def _choose(self, video: VideoFeatures, wanted: int) -> TokenSelection:
        n, size, device = *video.features.shape[:2], video.features.device
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(n * size, generator=generator)[:wanted].sort().values
        return TokenSelection(chosen.to(device))


@register_method
@dataclass(frozen=True, kw_only=True)
class UniformFrames(Baseline):
    """Evenly spaced whole frames.

    Whole frames make the budget an upper bound: ``floor(budget / S)`` frames are kept. A budget
    below one frame takes evenly spaced patches of the middle frame.

    Raises:
        ConfigError: a value out of range.
    """

    name: ClassVar[str] = "uniform-frames"
    token_count: ClassVar[str] = "known: at most the budget"
    exact_budget: ClassVar[bool] = False

    def _choose(self, video: VideoFeatures, wanted: int) -> TokenSelection:
        n, size, device = *video.features.shape[:2], video.features.device
        if wanted < size:
            patches = to_device(lattice(video.grid, wanted), device)
            return TokenSelection(patches + places(n, 1)[0] * size)
        return TokenSelection(_of_frames(evenly(n, wanted // size, device), size))


@register_method
@dataclass(frozen=True, kw_only=True)
class UniformSpatial(Baseline):
    """The same evenly spaced patches in every frame (exact budget).

    The patches form a lattice as square as their number allows. What ``T`` frames cannot share
    equally goes to evenly spaced frames, which keep one more patch.

    Raises:
        ConfigError: a value out of range.
    """

    name: ClassVar[str] = "uniform-spatial"

    def _choose(self, video: VideoFeatures, wanted: int) -> TokenSelection:
        n, size, device = *video.features.shape[:2], video.features.device
        each, more = divmod(wanted, n)
        patches = lattice(video.grid, each)
        others = sorted(set(range(size)) - set(patches))
        keep = torch.zeros(n, size, dtype=torch.bool)
        keep[:, patches] = True
        keep[places(n, more), others[len(others) // 2]] = True
        return TokenSelection(mask_index(keep, wanted).to(device))


@register_method
@dataclass(frozen=True, kw_only=True)
class PoolSpace(Baseline):
    """Average pooling of every frame to a coarser grid.

    The grid is the largest that the budget of a frame allows, with cells at most twice as long in
    one direction as in the other where possible, so the budget is an upper bound. A budget below
    one token a frame averages neighbouring frames as well.

    Raises:
        ConfigError: a value out of range.
    """

    name: ClassVar[str] = "pool-space"
    token_count: ClassVar[str] = "known: at most the budget"
    exact_budget: ClassVar[bool] = False

    def _choose(self, video: VideoFeatures, wanted: int) -> TokenSelection:
        frames = min(video.features.shape[0], wanted)
        return _pooled(video, (frames, *coarser_grid(video.grid, wanted // frames)))


@register_method
@dataclass(frozen=True, kw_only=True)
class PoolTime(Baseline):
    """Average of neighbouring frames, token by token.

    Whole frames make the budget an upper bound: ``floor(budget / S)`` averages are kept. A budget
    below one frame averages all frames and pools the result to a coarser grid.

    Raises:
        ConfigError: a value out of range.
    """

    name: ClassVar[str] = "pool-time"
    token_count: ClassVar[str] = "known: at most the budget"
    exact_budget: ClassVar[bool] = False

    def _choose(self, video: VideoFeatures, wanted: int) -> TokenSelection:
        size = video.features.shape[1]
        frames = max(1, wanted // size)
        return _pooled(video, (frames, *coarser_grid(video.grid, min(size, wanted))))


def _of_frames(frames: Tensor, size: int) -> Tensor:
    """Return the tokens of whole frames."""
    return (frames[:, None] * size + torch.arange(size, device=frames.device)).flatten()


def _pooled(video: VideoFeatures, shape: tuple[int, int, int]) -> TokenSelection:
    return TokenSelection(*pool_grid(video.features, video.grid, shape))
