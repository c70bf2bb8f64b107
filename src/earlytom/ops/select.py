"""Choose tokens by score: per frame, per window, over the whole video, or evenly (stage II).

Counts are host integers, so no choice makes the host wait for the device. Ties go to the lowest
index.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from earlytom.ops.tensors import ceil_div, to_device


def mask_index(mask: Tensor, count: int) -> Tensor:
    """Return the ``count`` positions of True in ``mask`` (flattened), ascending.

    Args:
        mask: bool of any shape with exactly ``count`` True.
        count: known on the host, so that nothing has to be read back.
    """
    flat = mask.flatten()
    place = torch.arange(flat.numel(), device=flat.device)
    return torch.where(flat, place, flat.numel()).sort().values[:count]


def top_per_frame(score: Tensor, counts: Sequence[int]) -> Tensor:
    """Mark the ``counts[n]`` tokens of largest score in every frame (paper: dynamic frames).

    Args:
        score: ``[N, S]``.
        counts: ``N`` numbers in [0, S].

    Returns:
        ``[N, S]`` bool.
    """
    order = score.sort(dim=1, descending=True, stable=True).indices
    take = torch.arange(score.shape[1], device=score.device) < to_device(
        [[c] for c in counts], score.device
    )
    return torch.zeros_like(score, dtype=torch.bool).scatter(1, order, take)


def top_per_window(score: Tensor, counts: Sequence[int]) -> Tensor:
    """Mark the token of largest score in each of ``counts[n]`` windows (paper: static frames).

    Windows are contiguous runs of the raster order; the first ``S mod t`` of ``t`` windows have
    one token more than the others. All windows of all frames are one padded argmax.

    Args:
        score: ``[N, S]``.
        counts: ``N`` numbers in [0, S]; those above 0 should be close to each other, since the
            temporary is ``[N, max(counts), ceil(S / min(counts))]``.

    Returns:
        ``[N, S]`` bool.
    """
    n, size = score.shape
    windows = max(counts)
    if windows == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    longest = max(ceil_div(size, c) for c in counts if c)
    device = score.device
    count = to_device([[c] for c in counts], device)  # [N, 1]
    safe = count.clamp_min(1)
    base, extra = torch.div(size, safe, rounding_mode="floor"), size % safe
    window = torch.arange(windows, device=device)[None]  # [1, W]
    start = window * base + torch.minimum(window, extra)  # [N, W]
    length = base + (window < extra)
    offset = torch.arange(longest, device=device)
    inside = (start[..., None] + offset).clamp_max(size - 1)  # [N, W, longest]
    values = score.gather(1, inside.flatten(1)).view(inside.shape)
    values = values.masked_fill(offset >= length[..., None], -torch.inf)
    best = torch.where(window < count, start + values.argmax(-1), size)  # size = no such window
    marked = torch.zeros(n, size + 1, dtype=torch.bool, device=device)
    return marked.scatter(1, best, True)[:, :size]


def top_of_video(score: Tensor, count: int) -> Tensor:
    """Mark the ``count`` tokens of largest score of the whole video; ``score [N, S]``."""
    return top_per_frame(score.reshape(1, -1), [count]).view(score.shape)


def evenly(n: int, count: int, device: torch.device) -> Tensor:
    """Return ``count`` of ``range(n)``, evenly spaced: ``floor((i + 1/2) n / count)``."""
    i = torch.arange(count, device=device)
    return torch.div((2 * i + 1) * n, 2 * count, rounding_mode="floor")
