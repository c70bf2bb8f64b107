"""ToMe: merge the most similar pairs of tokens in every layer of the encoder (ICLR 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from earlytom.checks import check_flag
from earlytom.errors import ConfigError
from earlytom.method import register_method
from earlytom.methods.encoder_method import EncoderMethod, signal
from earlytom.ops.bipartite import match_halves
from earlytom.ops.schedule import linear_counts, ported_counts
from earlytom.ops.tensors import exact
from earlytom.stages import PatchReduction, PatchState


@register_method
@dataclass(frozen=True, kw_only=True)
class ToMe(EncoderMethod):
    """Token Merging: bipartite soft matching of keys between attention and MLP.

    Bolya et al., ICLR 2023, arXiv 2210.09461, facebookresearch/ToMe@af95e4b. In every layer the
    tokens at even places look for the most similar key (mean over heads) at odd places, and the
    best pairs become their mean, weighted by the patches they stand for.

    ``official`` is the port to SigLIP and LLaVA-OneVision in viridisGreen/EarlyTom@b909322
    (``tome/``): the top left patch is protected as if it were a class token, attention ignores
    sizes, and the truncated schedule has no limit of one half. ``exact`` (default) is the original
    for encoders without class token. Not reproduced: pooling of the permuted sequence.

    Args:
        retention_ratio: see :class:`Method`.
        positions: see :class:`Method`; ``auto`` is ``renumber``.
        policy: ``exact`` or ``official``.
        inflection: slope of the schedule in [-1, 1]: 0 removes the same number in every layer,
            negative values more in early ones (faster). None: 0, or -0.5 under ``official``.
        proportional: whether attention adds ``log(size)`` to the logits of a key; not under
            ``official``.

    Raises:
        ConfigError: a value out of range, or too few layers: none can remove more than half.
        VideoError: NaN or infinite hidden states.
    """

    name: ClassVar[str] = "tome"
    citation: ClassVar[str] = "Bolya et al., ICLR 2023, arXiv 2210.09461"
    url: ClassVar[str] = "https://github.com/facebookresearch/ToMe"

    inflection: float | None = None
    proportional: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        c = self.inflection
        if c is not None and (
            not isinstance(c, (int, float)) or isinstance(c, bool) or not -1 <= c <= 1
        ):
            raise ConfigError(f"inflection must be a number in [-1, 1], got {c!r}")
        check_flag("proportional", self.proportional)

    def patch_signals(self) -> tuple[str, ...]:
        """Return the keys: tokens are alike if their keys are."""
        return ("key",)

    def proportional_attention(self) -> bool:
        """Whether later layers add ``log(size)`` to the logits."""
        return self.proportional and self.policy == "exact"

    def counts(self, n_points: int, grid: tuple[int, int], wanted: int) -> tuple[int, ...]:
        """Return the tokens left after every point.

        Raises:
            ValueError: a point would have to remove more than half of its tokens.
        """
        patches = grid[0] * grid[1]
        if self.policy == "exact":
            return linear_counts(n_points, patches, wanted, exact(self.inflection or 0))
        slope = -0.5 if self.inflection is None else self.inflection
        counts = ported_counts(n_points, patches, wanted, slope)
        for n, left in zip((patches, *counts), counts, strict=False):
            if n - left > (n - 1) // 2:
                raise ValueError(f"the ported schedule cannot reduce {patches} tokens to {wanted}")
        return counts

    def reduce_to(self, hidden: Tensor, state: PatchState, left: int) -> PatchReduction:
        """Merge the most similar pairs."""
        key = signal(state.key, self.name)
        n = hidden.shape[1]
        group = match_halves(key.float().mean(1), n - left, int(self.policy == "official"))
        merged, size = group.merge(hidden, state.size)
        return PatchReduction(merged, group.target(n), size)
