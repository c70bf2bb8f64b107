"""Choose tokens that differ from each other, and give the rest to their nearest kept token."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom import kernels
from earlytom.ops.tensors import CHUNK_BYTES, full_precision, slices, unit_rows

GRAM_BYTES = 256 << 20  # 8192 tokens


def diverse_tokens(features: Tensor, count: int, max_bytes: int = GRAM_BYTES) -> Tensor:
    """Farthest-point selection by cosine distance.

    The first token is the one that differs most from the mean of its frame; every next token is
    the one farthest from all chosen so far. Ties go to the lowest index. Sequential over ``count``,
    vectorised over candidates, without reading anything back to the host.

    Args:
        features: ``[N, S, D]`` of any float dtype; the maths is float32.
        count: tokens to choose, in [1, N * S].
        max_bytes: all similarities are computed at once if they fit, else one row per choice.

    Returns:
        ``[count]`` int64, ascending indices into ``N * S``.
    """
    features = features.detach().float()
    unit = unit_rows(features)
    centre = unit_rows(features.mean(dim=1, keepdim=True))
    first = (unit * centre).sum(-1).flatten().argmin()
    return farthest_points(unit.flatten(0, 1), count, first[None], max_bytes)


def farthest_points(unit: Tensor, count: int, start: Tensor, max_bytes: int = GRAM_BYTES) -> Tensor:
    """Add to ``start`` the points that are farthest from all chosen so far, one by one.

    Sequential over the points added, vectorised over candidates, without reading anything back to
    the host. Ties go to the lowest index.

    Args:
        unit: ``[n, D]`` float32 with rows of length 1 (or 0).
        count: points to end with, in [start.numel(), n].
        start: ``[m]`` int64, ``m >= 1`` different points.
        max_bytes: all similarities are computed at once if they fit, else one row per choice.

    Returns:
        ``[count]`` int64, ascending.
    """
    m, n = start.numel(), unit.shape[0]
    chosen = torch.cat([start, start[:1].expand(count - m)])
    with full_precision(unit.device):
        table = _table(unit) if 4 * n**2 <= max_bytes else None
        nearest = (unit @ unit.index_select(0, start).mT).amax(1).clamp_max_(1.0)
        nearest.index_fill_(0, start, torch.inf)
        if table is not None and n <= kernels.MAX_POINTS and kernels.use(table):
            from earlytom.kernels import farthest

            return farthest.farthest_points(table, nearest, start, count).sort().values
        for i in range(m, count):
            if i > m:
                latest = chosen[i - 1 : i]
                row = _row(unit, latest) if table is None else table.index_select(0, latest)[0]
                torch.maximum(nearest, row, out=nearest)
            torch.argmin(nearest, dim=0, keepdim=True, out=chosen[i : i + 1])
    return chosen.sort().values


def _table(unit: Tensor) -> Tensor:
    """Return all similarities ``[n, n]``, at most 1.

    A token itself gets infinity: no token is chosen twice, even among identical ones.
    """
    return (unit @ unit.mT).clamp_max_(1.0).fill_diagonal_(torch.inf)


def _row(unit: Tensor, token: Tensor) -> Tensor:
    """Return the row of the token ``[1]`` in the table."""
    similar = unit @ unit.index_select(0, token)[0]
    return similar.clamp_max_(1.0).index_fill_(0, token, torch.inf)


def nearest_kept(others: Tensor, kept: Tensor, max_bytes: int = CHUNK_BYTES) -> Tensor:
    """Return for every row of ``others`` the most cosine-similar row of ``kept``.

    Args:
        others: ``[m, D]``.
        kept: ``[k, D]``, ``k >= 1``.
        max_bytes: bound of the ``[rows, k]`` similarities held at a time.

    Returns:
        ``[m]`` int64; ties go to the lowest index.
    """
    half = others.dtype == kept.dtype and others.dtype.itemsize == 2  # else cuBLAS is as fast
    if half and kernels.use(others, kept):
        from earlytom.kernels import nearest as fused

        return fused.nearest_kept(others, kept)
    target = unit_rows(kept).mT
    step = max(1, max_bytes // (4 * kept.shape[0]))
    nearest = torch.empty(others.shape[0], dtype=torch.int64, device=others.device)
    with full_precision(others.device):
        for a, b in slices(others.shape[0], step):
            nearest[a:b] = (unit_rows(others[a:b]) @ target).argmax(dim=1)
    return nearest


def owners(others: Tensor, index: Tensor) -> Tensor:
    """Return for every row its most cosine-similar chosen row; a chosen row is always its own.

    Args:
        others: ``[n, D]`` all rows.
        index: ``[k]`` int64 the chosen ones.

    Returns:
        ``[n]`` int64, numbers in ``range(k)``.
    """
    owner = nearest_kept(others, others.index_select(0, index))
    return owner.index_copy(0, index, torch.arange(index.numel(), device=index.device))


def member_means(
    features: Tensor, owner: Tensor, member: Tensor, count: int, max_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Average the tokens of every owner.

    Args:
        features: ``[n, D]``.
        owner: ``[n]`` int64 in ``range(count)``.
        member: ``[n]`` float32, how much each token counts; above 0 for one of every owner.
        count: owners.
        max_bytes: bound of the features held in float32 at a time.

    Returns:
        ``[count, D]`` float32 means and ``[count]`` float32 sums of ``member``.
    """
    n, dim = features.shape
    total = torch.zeros(count, dim, dtype=torch.float32, device=features.device)
    for a, b in slices(n, max(1, max_bytes // max(1, 4 * dim))):
        total.index_add_(0, owner[a:b], features[a:b].float() * member[a:b, None])
    weight = torch.zeros(count, dtype=torch.float32, device=features.device)
    weight.index_add_(0, owner, member)
    return total / weight[:, None], weight


def merge_rest(features: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Average every token that was not chosen into its nearest chosen one.

    Args:
        features: ``[n, D]`` all tokens.
        index: ``[k]`` int64 chosen tokens.

    Returns:
        ``[k, D]`` means in the dtype of ``features`` and ``[k]`` float32 number of members.
    """
    owner = owners(features, index)
    every = torch.ones(owner.shape, device=owner.device)
    mean, weight = member_means(features, owner, every, index.numel())
    return mean.to(features.dtype), weight
