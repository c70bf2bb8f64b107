"""Afterimage: encode only what changed, keep evenly spread and distinctive tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from earlytom.checks import check_ratio
from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
from earlytom.ops.diversity import farthest_points, member_means, owners
from earlytom.ops.fresh import changed_patches
from earlytom.ops.lattice import video_lattice
from earlytom.ops.tensors import (
    CHUNK_BYTES,
    check_finite,
    exact,
    slices,
    to_device,
    unit_rows,
)
from earlytom.ops.whitening import whitened
from earlytom.stages import TokenSelection, VideoFeatures

_START = Fraction(1, 12)  # share of the encoder that sees every patch
_ANGLE = math.pi / 2  # from the first frame to the last
_ALIKE = 0.75  # likeness from which on tokens are averaged


@register_method
@dataclass(frozen=True, kw_only=True)
class Afterimage(Method):
    """Afterimage (this project): reuse unchanged patches in the encoder, keep tokens evenly spread.

    Encoder: from ``layer`` on only the patches that changed most since the frame before are
    computed. Every other patch lends the state, the keys and the values of the same patch in the
    latest frame that computed it, so attention still sees whole frames. The number of patches
    computed is exact. Nothing is merged: every frame keeps its time, and every token its place.

    Tokens: a share ``even_share`` of the budget goes to cells spread evenly over time, height and
    width, whatever they show, so that what is left has about the proportions of the whole video.
    The rest goes to the tokens farthest from all chosen so far, where tokens count as similar if
    they look alike and lie close in time: brief and small things. How alike they look is judged on
    whitened features, so that what differs much (the background) does not drown what differs
    little (what a thing is, where it is in its cell).

    A token kept moves some way towards the mean of the tokens it stands for that are much like it,
    which takes noise away.

    Language model: rare things are over-represented among the tokens kept. So a token counts in
    the attention to it as ``n ** weight_power``, where ``n`` is the number of tokens of the video
    that are most similar to it. Needs ``sdpa`` or ``eager`` attention; with others all tokens count
    alike.

    Args:
        retention_ratio: see :class:`Method`; exactly ``max(1, ceil(r T S))`` tokens are kept.
        positions: see :class:`Method`; ``auto`` is ``keep``, within the model's context.
        encoder_budget: patches that the layers of the encoder compute / those of the full encoder,
            in (0, 1]; 1 computes all. Never exceeded, unless the first frame alone costs more.
        layer: encoder layer from which on patches are reused; None scales ours (1 of 12) to the
            depth.
        even_share: share of the tokens that is spread evenly, in [0, 1].
        time_weight: weight of the distance in time beside that of the features, 0 or more.
        ridge: how little variance counts as noise when features are whitened, in (0, 1]
            (:func:`earlytom.ops.whitening.whitened`); None: features are compared as they are.
        weight_power: how far tokens count by what they stand for, in [0, 1]; 0 for all alike.
        blend: how far a token moves to the mean of those it stands for that are much like it (in
            looks and time, likeness above 0.75), in [0, 1]; 0 leaves it as it is.

    Raises:
        ConfigError: a value out of range.
    """

    name: ClassVar[str] = "afterimage"
    signals: ClassVar[tuple[str, ...]] = ("frame similarity", "token features")

    encoder_budget: float = 0.5
    layer: int | None = None
    even_share: float = 0.35
    time_weight: float = 1.5
    ridge: float | None = 3e-4
    weight_power: float = 0.85
    blend: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ratio("encoder_budget", self.encoder_budget)
        check_ratio("even_share", self.even_share, open_low=False)
        check_ratio("weight_power", self.weight_power, open_low=False)
        check_ratio("blend", self.blend, open_low=False)
        if self.ridge is not None:
            check_ratio("ridge", self.ridge)
        value = self.time_weight
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not ok or not math.isfinite(value) or value < 0:
            raise ConfigError(f"time_weight must be a number >= 0, got {value!r}")
        layer = self.layer
        if layer is not None and (
            not isinstance(layer, int) or isinstance(layer, bool) or layer < 0
        ):
            raise ConfigError(f"layer must be an integer >= 0 or None, got {layer!r}")

    # ------------------------------------------------------------------ what the engine asks
    @property
    def exact_budget(self) -> bool:
        """Always true."""
        return True

    def resolved_positions(self) -> str:
        """Return ``positions``; ``auto`` is ``keep``."""
        return "keep" if self.positions == "auto" else self.positions

    def reuse_layer(self, n_layers: int) -> int | None:
        """Return ``layer``; None if everything is computed anyway.

        Raises:
            ConfigError: the layers in front of it cost more than ``encoder_budget``.
        """
        if self.encoder_budget == 1:
            return None
        layer = self.layer
        if layer is None:
            layer = max(1, math.floor(_START * n_layers + Fraction(1, 2)))
        if layer < n_layers and Fraction(layer, n_layers) >= exact(self.encoder_budget):
            raise ConfigError(
                f"encoder_budget {self.encoder_budget:g} cannot be met: {layer} of {n_layers} "
                f"layers compute every patch; allowed: above {layer / n_layers:.3g}, or an "
                "earlier layer"
            )
        return layer

    def without_reuse(self) -> Method:
        """Return the token stage alone: ``encoder_budget`` 1."""
        return replace(self, encoder_budget=1.0)

    # ------------------------------------------------------------------ encoder
    def fresh_count(self, n_frames: int, patches: int, n_layers: int) -> int:
        """Return how many patches of ``T`` frames the layers from ``layer`` on compute."""
        layer = self.reuse_layer(n_layers)
        total = n_frames * patches
        if layer is None:
            return total
        share = (exact(self.encoder_budget) * n_layers - layer) / (n_layers - layer)
        return max(patches, math.floor(share * total))

    def fresh_patches(self, hidden: Tensor, n_layers: int) -> Tensor:
        """Mark the patches that changed most, and all of the first frame.

        Raises:
            VideoError: NaN or infinite states.
        """
        check_finite(hidden)
        n, patches = hidden.shape[:2]
        return changed_patches(hidden, self.fresh_count(n, patches, n_layers))

    # ------------------------------------------------------------------ tokens
    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Choose evenly spread tokens first, then the ones farthest from them.

        Raises:
            VideoError: NaN or infinite features.
        """
        features = video.features
        n, size = features.shape[:2]
        wanted = self.token_budget(video.state.n_input, size)
        if wanted >= n * size:
            return None
        check_finite(features)
        even = max(1, math.floor(exact(self.even_share) * wanted))
        start = to_device(video_lattice(n, video.grid, even), features.device)
        unit = with_time(features, self.time_weight, self.ridge)
        index = farthest_points(unit, wanted, start)
        if not self.weighs_tokens and not self.blend:
            return TokenSelection(index)
        owner = owners(unit, index)
        weight = self._weights(owner, wanted) if self.weighs_tokens else None
        values = self._blended(features.flatten(0, 1), unit, index, owner) if self.blend else None
        return TokenSelection(index, values, weight)

    def _weights(self, owner: Tensor, count: int) -> Tensor:
        members = torch.zeros(count, device=owner.device)
        members.index_add_(0, owner, torch.ones_like(owner, dtype=members.dtype))
        return members**self.weight_power

    def _blended(self, tokens: Tensor, unit: Tensor, index: Tensor, owner: Tensor) -> Tensor:
        """Return the chosen tokens, moved towards the mean of those much like them."""
        alike = (unit * unit.index_select(0, index.index_select(0, owner))).sum(-1)
        member = (alike > _ALIKE).float().index_fill_(0, index, 1.0)
        mean, _ = member_means(tokens, owner, member, index.numel())
        return mean.lerp(tokens.index_select(0, index).float(), 1 - self.blend).to(tokens.dtype)

    @property
    def weighs_tokens(self) -> bool:
        """Whether tokens count by what they stand for."""
        return self.weight_power > 0


def with_time(features: Tensor, weight: float, ridge: float | None = None) -> Tensor:
    """Return unit vectors whose products mix likeness and closeness in time.

    ``(cos(x, y) + w^2 cos(pi/2 (s - t) / T)) / (1 + w^2)`` for tokens ``x`` of frame ``s`` and
    ``y`` of frame ``t``, features taken relative to the mean of the video.

    Args:
        features: ``[T, S, D]``.
        weight: ``w``.
        ridge: of :func:`whitened`; None compares features as they are.

    Returns:
        ``[T * S, d + 2]`` float32, where ``d`` is ``D``, or what whitening leaves of it.
    """
    features = features.detach()
    mean = torch.zeros((), device=features.device)
    if ridge is None:
        mean = features.mean((0, 1), dtype=torch.float32)
    else:
        features = whitened(features, ridge)
    n, size, dim = features.shape
    angle = torch.arange(n, device=features.device) * (_ANGLE / n)
    time = torch.stack([angle.cos(), angle.sin()], 1)[:, None].expand(-1, size, -1)
    out = torch.empty(n, size, dim + 2, device=features.device)
    step = max(1, CHUNK_BYTES // max(1, size * dim * 4))  # frames in float32 at a time
    for a, b in slices(n, step):
        unit = unit_rows(features[a:b].float() - mean)
        out[a:b] = torch.cat([unit, weight * time[a:b]], -1) / math.sqrt(1 + weight**2)
    return out.flatten(0, 1)
