"""Which patches changed since the frame before: the ones an encoder has to compute again."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.ops.select import top_of_video
from earlytom.ops.tensors import CHUNK_BYTES, slices


def changed_patches(hidden: Tensor, count: int, max_bytes: int = CHUNK_BYTES) -> Tensor:
    """Mark the ``count`` patches of a video that differ most from the same patch one frame earlier.

    The difference is one minus the cosine of the states after subtracting their mean over the
    video: what all patches have in common says nothing about change.

    Args:
        hidden: ``[T, patches, dim]`` of any float dtype; the maths is float32.
        count: in [patches, T * patches]; frame 0 is always marked as a whole.
        max_bytes: bound of the states compared at a time (at least two frames).

    Returns:
        ``[T, patches]`` bool with exactly ``count`` True. Ties go to the earlier patch.
    """
    hidden = hidden.detach()
    mean = hidden.mean((0, 1), dtype=torch.float32)
    n, size, dim = hidden.shape
    change = torch.full((n, size), torch.inf, device=hidden.device)
    step = max(1, max_bytes // max(1, size * dim * 4))
    for start, end in slices(n - 1, step):
        x = hidden[start : end + 1].float() - mean
        norm = torch.linalg.vector_norm(x, dim=-1).clamp_min(1e-8)
        alike = torch.linalg.vecdot(x[1:], x[:-1]) / (norm[1:] * norm[:-1])
        change[start + 1 : end + 1] = 1 - alike
    return top_of_video(change, count)
