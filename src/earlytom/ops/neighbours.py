"""Keep tokens by attention and merge their neighbours in key space (LLaVA-PruMerge)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from earlytom.ops.tensors import CHUNK_BYTES, full_precision, slices, to_device, unit_rows


def outlier_share(score: np.ndarray) -> float:
    """Return the share of values above ``Q3 + 1.5 (Q3 - Q1)``, quartiles over all values."""
    flat = score.astype(np.float32).ravel()
    low, high = np.percentile(flat, 25), np.percentile(flat, 75)
    return int((flat > high + 1.5 * (high - low)).sum()) / flat.size


def by_score(score: np.ndarray) -> np.ndarray:
    """Return the places ``[N, S]`` of every frame by descending score; ties: ascending place."""
    return np.argsort(-score, axis=1, kind="stable")


def grid_places(chosen: np.ndarray, share: float, bound: int) -> np.ndarray:
    """Return the places PruMerge+ adds to those chosen: every ``int(int(1 / share) / 3)``-th.

    Args:
        chosen: places that are there already.
        share: see :func:`outlier_share`, above 0.
        bound: places from here on are never added (released: 575).
    """
    step = max(1, int(int(1 / share) / 3))
    return np.setdiff1d(np.arange(0, bound, step), chosen)


def merge_neighbours(
    x: Tensor,
    keys: Tensor,
    score: Tensor,
    kept: list[list[int]],
    neighbours: int = 32,
    mean: bool = False,
    max_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Add to every kept token its nearest neighbours, and sum the tokens not kept up into one.

    Args:
        x: ``[N, S, D]``.
        keys: ``[N, S, E]``; neighbours are the tokens of a frame with the most similar keys
            (cosine), kept ones included, the token itself not.
        score: ``[N, S]`` attention: the weight of a token.
        kept: places kept in every frame, in any order.
        neighbours: how many (at most ``S - 1``).
        mean: False: ``x_i + sum_j a_j x_j`` and ``sum_j a_j x_j``, as released; True: divided by
            the weights, ``x_i`` weighing ``a_i``.
        max_bytes: bound of the frames at a time (at least one).

    Returns:
        float32: ``[sum of kept, D]`` in the order of ``kept`` and ``[N, D]`` of those not kept.
    """
    n, size, dim = x.shape
    device, most = x.device, max(1, *map(len, kept))
    near = min(neighbours, size - 1)
    values, extras = [], []
    step = max(1, max_bytes // (4 * (2 * most * size + most * dim + size * dim)))
    for a, b in slices(n, step):
        table = np.zeros((b - a, most), dtype=np.int64)
        there = np.arange(most) < np.array([[len(k)] for k in kept[a:b]])
        table[there] = [p for k in kept[a:b] for p in k]
        place = to_device(table, device)
        alive = to_device(there, device, torch.float32)
        weight = score[a:b].float()
        left = torch.ones(b - a, size, device=device)
        left = left - torch.zeros_like(left).scatter_add(1, place, alive).clamp_max(1)
        with full_precision(device):
            unit = unit_rows(keys[a:b])
            rows = unit.gather(1, place[..., None].expand(-1, -1, unit.shape[2]))
            similar = (rows @ unit.mT).scatter(2, place[..., None], -torch.inf)
            found = similar.sort(dim=2, descending=True, stable=True).indices[..., :near]
            matrix = torch.zeros_like(similar).scatter(2, found, 1.0) * weight[:, None]
            own = weight.gather(1, place)[..., None] if mean else alive[..., None]
            matrix = matrix.scatter_add(2, place[..., None], own)
            matrix = torch.cat([matrix, (weight * left)[:, None]], 1)  # [n, most + 1, S]
            if mean:
                matrix = matrix / matrix.sum(2, keepdim=True).clamp_min(1e-30)
            merged = matrix @ x[a:b].float()
        values.append(merged[:, :-1].flatten(0, 1)[to_device(np.flatnonzero(there), device)])
        extras.append(merged[:, -1])
    return torch.cat(values), torch.cat(extras)
