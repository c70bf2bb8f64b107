"""Common part of the methods that reduce patch tokens between layers of the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from earlytom.checks import check_choice
from earlytom.errors import ConfigError
from earlytom.method import Method
from earlytom.ops.tensors import check_finite
from earlytom.stages import PatchReduction, PatchState


@dataclass(frozen=True, kw_only=True)
class EncoderMethod(Method):
    """Reduces the patches of every frame at some layers until ``PatchState.wanted`` are left.

    A subclass says at which layers (:meth:`points`), how many tokens each leaves
    (:meth:`counts`), and does one reduction (:meth:`reduce_to`). All counts follow from
    ``retention_ratio``, so frames and videos have equally many tokens at any time.

    Args:
        retention_ratio: see :class:`Method`.
        positions: see :class:`Method`; ``auto`` is ``renumber``.
        policy: ``exact`` or ``official``.

    Raises:
        ConfigError: a value out of range, or too few layers for this reduction.
        VideoError: NaN or infinite hidden states in front of the first reduction.
    """

    policy: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))

    @property
    def exact_budget(self) -> bool:
        """Return True: the number of tokens does not depend on the video."""
        return True

    def reduce_layers(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers in which tokens are reduced; none if everything is kept."""
        return () if self.retention_ratio == 1 else self.points(n_layers)

    def points(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers in which tokens are reduced, ascending; here: all."""
        return tuple(range(n_layers))

    def counts(self, n_points: int, grid: tuple[int, int], wanted: int) -> tuple[int, ...]:
        """Return the tokens of a frame left after every point.

        Args:
            n_points: reduction points, at least 1.
            grid: (height, width) of the patch grid.
            wanted: tokens left after the last, in [1, height * width].

        Raises:
            ValueError: the points cannot remove as many.
        """
        raise NotImplementedError

    def reduce_to(self, hidden: Tensor, state: PatchState, left: int) -> PatchReduction:
        """Reduce the tokens ``[T, n, D]`` of one video to ``left`` per frame, ``left < n``."""
        raise NotImplementedError

    def reduce_patches(self, hidden: Tensor, state: PatchState) -> PatchReduction | None:
        """Do the reduction of point ``state.point``; None if it has nothing to remove."""
        if self.retention_ratio == 1:
            return None
        n_points = len(self.reduce_layers(state.n_layers))
        try:
            counts = self.counts(n_points, state.grid, min(state.wanted, state.patches))
        except ValueError as e:
            raise ConfigError(f"{self.name}: {e}; ask for a larger retention_ratio") from e
        if state.point == 0:
            check_finite(hidden)
        left = counts[state.point]
        return self.reduce_to(hidden, state, left) if left < hidden.shape[1] else None


def signal(value: Tensor | None, name: str) -> Tensor:
    """Return queries or keys ``[T, heads, n, d]`` of the layer.

    Raises:
        ConfigError: the model did not give them.
    """
    if value is None:
        raise ConfigError(
            f"{name} needs attention keys and queries, which this model does not give"
        )
    return value
