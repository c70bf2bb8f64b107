"""Bring the numbers of a decision to the host: one copy, finiteness checked on the way."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from earlytom.ops.tensors import not_finite


def read_host(values: Tensor, *checked: Tensor) -> np.ndarray:
    """Copy ``values`` to the host as float32 and check other tensors in the same copy.

    Args:
        values: anything exact in float32: scores, masks, small integers.
        checked: tensors ``[frames, ..., D]`` whose rows must be finite.

    Raises:
        VideoError: a checked tensor holds NaN or infinite values.
    """
    fine = [torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32) for x in checked]
    flags = [torch.isfinite(norms).all().float().view(1) for norms in fine]
    packed = torch.cat([*flags, values.detach().float().flatten()]).cpu().numpy()
    if not packed[: len(flags)].all():
        raise not_finite(checked[0].shape[0])
    return packed[len(flags) :].reshape(values.shape)
