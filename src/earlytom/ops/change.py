"""How much every token changed since the frame before it (EVS)."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.ops.tensors import CHUNK_BYTES, slices, unit_rows


def change_since_last_frame(features: Tensor, max_bytes: int = CHUNK_BYTES) -> Tensor:
    """Return ``1 - cos`` of every token and the token at its place one frame earlier.

    Args:
        features: ``[N, S, D]`` of any float dtype; the maths is float32.
        max_bytes: bound of the tokens normalised at a time (at least two frames).

    Returns:
        ``[N, S]`` float32; the first frame, which has no frame before it, is infinite.
    """
    n, size, dim = features.shape
    change = torch.full((n, size), torch.inf, device=features.device)
    step = max(1, max_bytes // max(1, size * dim * 4))
    for start, end in slices(n - 1, step):
        unit = unit_rows(features[start : end + 1])
        change[start + 1 : end + 1] = 1 - (unit[1:] * unit[:-1]).sum(-1)
    return change
