"""Energy: how many near-duplicates a token has in its frame, and merging by it (PiToMe)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from earlytom.ops.bipartite import match_edges, most_similar
from earlytom.ops.grouping import Grouping, descending, rows_at
from earlytom.ops.tensors import CHUNK_BYTES, full_precision, slices, unit_rows


def energy(
    unit: Tensor,
    margin: float,
    alpha: float = 1.0,
    shifted: bool = False,
    max_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Return ``E_i = mean_j f(cos_ij)``: large for a token in a large cluster.

    Tran et al., NeurIPS 2024, equation 4: ``f(x) = x`` at and above the margin and
    ``alpha (exp(x - margin) - 1)`` below.

    Args:
        unit: ``[T, n, E]`` float32 unit rows.
        margin: similarity from which two tokens count as duplicates.
        alpha: how much tokens below the margin count against it.
        shifted: ``x - margin`` instead of ``x`` above the margin, as released.
        max_bytes: bound of the similarities at a time; at least one frame.

    Returns:
        ``[T, n]`` float32.
    """
    frames, n = unit.shape[:2]
    step = max(1, max_bytes // (4 * n * n))
    out = []
    with full_precision(unit.device):
        for start, end in slices(frames, step):
            similar = unit[start:end] @ unit[start:end].mT
            value = F.elu(similar - margin, alpha)
            if not shifted:
                value = torch.where(similar >= margin, similar, value)
            out.append(value.mean(dim=2))
    return torch.cat(out)


def match_by_energy(
    metric: Tensor,
    r: int,
    margin: float,
    alpha: float = 1.0,
    shifted: bool = False,
    every_edge: bool = False,
) -> Grouping:
    """Merge ``r`` tokens of large clusters; tokens of small energy are kept as they are.

    The ``2 r`` tokens of largest energy are mergeable: those of even rank join the most similar
    one of odd rank. Output order: protected tokens by descending energy, then those of odd rank.

    Args:
        metric: ``[T, n, E]`` what similarity (cosine) is measured by, in any float dtype.
        r: tokens to remove, at most ``n // 2``.
        margin: see :func:`energy`, as ``alpha`` and ``shifted``.
        every_edge: split *all* tokens by their rank and merge the ``r`` most similar pairs
            (the released variant ``pitome_bsm``).

    Raises:
        ValueError: ``r`` out of range.
    """
    n = metric.shape[1]
    if not 0 <= 2 * r <= n:
        raise ValueError(f"cannot merge {r} of {n} tokens")
    if r == 0:
        return Grouping.keep(torch.arange(n, device=metric.device).expand(metric.shape[:2]))
    unit = unit_rows(metric)
    order = descending(energy(unit, margin, alpha, shifted))
    if every_edge:
        return match_edges(unit, order[:, ::2], order[:, 1::2], r)
    merged, rest = order[:, : 2 * r], order[:, 2 * r :]
    a, b = merged[:, ::2], merged[:, 1::2]
    _, partner = most_similar(rows_at(unit, a), rows_at(unit, b))
    return Grouping(torch.cat([rest, b], dim=1), a, partner + rest.shape[1])
