"""How typical every token is of its video and of its frame, and what frames deserve (VidCom2)."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.ops.tensors import unit_rows

BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
TEMPERATURE = 0.01


def typicality(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return how similar every token is to the centre of its video and of its frame.

    Both are sums of Gaussian kernels over ``BANDWIDTHS`` of the distance between the unit token and
    the mean of unit tokens, measured in the half of the channels with the lowest variance.

    Args:
        features: ``[N, S, D]`` of any float dtype; the maths is float32.

    Returns:
        Two ``[N, S]`` float32 tensors: similarity to the video's and to the frame's centre.
    """
    rows = features.flatten(0, 1).float()
    variance = (rows - rows.mean(dim=0)).square_().mean(dim=0)  # torch.var is slow on the CPU
    channels = variance.sort(stable=True).indices[: max(1, variance.numel() // 2)]
    unit = unit_rows(features.index_select(-1, channels))
    in_video = _gaussians(unit, unit.mean(dim=(0, 1), keepdim=True))
    return in_video, _gaussians(unit, unit.mean(dim=1, keepdim=True))


def _gaussians(x: Tensor, centre: Tensor) -> Tensor:
    distance = (x - centre).square().sum(-1)
    total = torch.zeros_like(distance)
    for bandwidth in BANDWIDTHS:
        total += torch.exp(-distance / (2 * bandwidth))
    return total


def frame_budgets(in_video: Tensor, ratio: float) -> Tensor:
    """Return how many tokens every frame deserves: more if it is unlike the rest of the video.

    Args:
        in_video: ``[N, S]`` similarity to the video's centre.
        ratio: share of the tokens to keep on average.

    Returns:
        ``[N]`` int64 in [1, S], on the device; the sum is only close to ``ratio * N * S``.
    """
    size = in_video.shape[1]
    score = -in_video.mean(dim=1)
    extra = torch.softmax((score - score.max()) / TEMPERATURE, dim=0)
    share = (ratio * (1 + extra - extra.mean())).clamp_max(1)
    return (share * size).round().long().clamp(1, size)


def least_typical(similar: Tensor, counts: Tensor) -> Tensor:
    """Mark the ``counts[n]`` tokens of smallest similarity in every frame; ties: lowest index.

    Args:
        similar: ``[N, S]``.
        counts: ``[N]`` int64 in [0, S] on the same device (nothing is read back).

    Returns:
        ``[N, S]`` bool.
    """
    order = similar.sort(dim=1, stable=True).indices
    take = torch.arange(similar.shape[1], device=similar.device) < counts[:, None]
    return torch.zeros_like(take).scatter(1, order, take)


def settle(mask: Tensor, similar: Tensor, count: int) -> Tensor:
    """Return ``count`` tokens: of those marked the least similar first, then of the others.

    Too many marks lose the most similar ones, too few gain the least similar of the rest.

    Args:
        mask: ``[N, S]`` bool.
        similar: ``[N, S]``.
        count: in [1, N * S].

    Returns:
        ``[count]`` int64, ascending indices into ``N * S``.
    """
    order = similar.flatten().sort(stable=True).indices
    marked_first = (~mask.flatten()[order]).byte().sort(stable=True).indices
    return order[marked_first[:count]].sort().values
