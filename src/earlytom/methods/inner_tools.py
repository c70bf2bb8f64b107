"""Steps that methods share inside the language model (stage III)."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from earlytom.errors import ConfigError
from earlytom.ops.inner import inner_merge
from earlytom.ops.select import mask_index
from earlytom.stages import InnerMerge, InnerState


def merge_unseen(state: InnerState, share: float, mode: str) -> InnerMerge | None:
    """Keep the visual columns that the last query looks at most; merge the others into them.

    Args:
        state: with the attention of the last query.
        share: share of the visual columns (newline tokens included) that stay; at least one does.
        mode: see :func:`earlytom.ops.inner.inner_merge`.
    """
    count = max(1, round(state.n_visual * share))
    if count >= state.n_visual:
        return None
    assert state.attention is not None
    place = mask_index(state.visual, state.n_visual)
    return InnerMerge(*inner_merge(state.hidden, state.attention[:, -1], place, count, mode))


def keep_best(score: Tensor, candidates: Tensor, n_candidates: int, count: int) -> Tensor:
    """Return the columns that stay: all others, and the ``count`` best of the candidates.

    Args:
        score: ``[n]`` any float dtype; ties go to the lowest column.
        candidates: ``[n]`` bool with exactly ``n_candidates`` True.
        n_candidates: known on the host, so that nothing has to be read back.
        count: in [0, n_candidates].

    Returns:
        ``[n - n_candidates + count]`` int64 ascending.
    """
    n = score.shape[0]
    first = torch.where(candidates, score.float(), torch.inf)  # the others lead
    order = first.sort(descending=True, stable=True).indices
    return order[: n - n_candidates + count].sort().values


def keep_seen(state: InnerState, count: int, newlines: bool) -> InnerMerge | None:
    """Keep the ``count`` tokens that the last query looks at most (mean over heads), copy them.

    Args:
        state: with the attention of the last query.
        count: tokens to keep; as many as there are or more: None.
        newlines: newline tokens compete and count; if not, all of them stay.
    """
    present = state.n_visual if newlines else state.n_tokens
    if count >= present:
        return None
    assert state.attention is not None
    candidates = state.visual if newlines else state.patch >= 0
    score = state.attention[:, -1].mean(0)
    return InnerMerge(keep_best(score, candidates, present, count))


def share_behind(name: str, ratio: Fraction, layer: int, n_layers: int) -> Fraction:
    """Return the share kept from ``layer`` on whose average over all layers is ``ratio``.

    Raises:
        ConfigError: the layers in front of it alone cost more.
    """
    left = ratio * n_layers - layer
    if left <= 0:
        raise unreachable(name, layer, n_layers)
    return left / (n_layers - layer)


def unreachable(name: str, first: int, n_layers: int) -> ConfigError:
    """Return the error for an average that the layers in front of the first point exceed alone."""
    return ConfigError(
        f"{name} keeps at least {first / n_layers:.3f} of the visual tokens on {n_layers} layers "
        f"(layer {first} prunes first); ask for more, choose an earlier layer or budget='behind'"
    )
