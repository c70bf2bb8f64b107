"""Which patches changed since the frame before: the ones an encoder has to compute again."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.ops.select import top_of_video


def changed_patches(hidden: Tensor, count: int) -> Tensor:
    """Mark the ``count`` patches of a video that differ most from the same patch one frame earlier.

    The difference is one minus the cosine of the states after subtracting their mean over the
    video: what all patches have in common says nothing about change.

    Args:
        hidden: ``[T, patches, dim]`` of any float dtype; the maths is float32.
        count: in [patches, T * patches]; frame 0 is always marked as a whole.

    Returns:
        ``[T, patches]`` bool with exactly ``count`` True. Ties go to the earlier patch.
    """
    x = hidden.detach().float()
    x = x - x.mean((0, 1))
    norm = torch.linalg.vector_norm(x, dim=-1).clamp_min(1e-8)
    change = 1 - torch.linalg.vecdot(x[1:], x[:-1]) / (norm[1:] * norm[:-1])
    first = torch.full_like(norm[:1], torch.inf)
    return top_of_video(torch.cat([first, change]), count)
