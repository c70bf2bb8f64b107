"""Keep what resembles some pivots least (DART: duplication-aware reduction of tokens)."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.ops.budget import spread
from earlytom.ops.tensors import full_precision, unit_rows


def least_duplicated(hidden: Tensor, visual: Tensor, count: int, pivots: tuple[int, int]) -> Tensor:
    """Choose visual columns: some pivots, and those that differ most from pivots.

    Pivots are the visual columns and the text columns behind the first visual one of largest L1
    norm. In ascending order each takes its share of the columns left, least cosine first; ties go
    to the lowest index. The only loop is over pivots.

    Args:
        hidden: ``[n, D]`` states of one sequence.
        visual: ``[n]`` bool, columns to choose from.
        count: columns to choose, in [1, number of visual columns].
        pivots: (visual, text) pivots; visual ones beyond ``count`` are left out.

    Returns:
        ``[n]`` bool with ``count`` True.
    """
    n = hidden.shape[0]
    norm = hidden.float().abs().sum(-1)
    seen = visual.cumsum(0) > 0
    own = min(pivots[0], count)
    first = norm.masked_fill(~visual, -torch.inf).sort(descending=True, stable=True).indices[:own]
    text = norm.masked_fill(visual | ~seen, -torch.inf).sort(descending=True, stable=True).indices
    pivot = torch.cat([first, text[: min(pivots[1], n)]]).sort().values
    with full_precision(hidden.device):
        rows = unit_rows(hidden)
        cosine = rows.index_select(0, pivot) @ rows.t()
    taken = torch.zeros_like(visual).index_fill(0, first, True)
    for similar, share in zip(cosine, spread(count - own, len(pivot)), strict=True):
        free = similar.masked_fill(~visual | taken, torch.inf)
        taken = taken.index_fill(0, free.sort(stable=True).indices[:share], True)
    return taken
