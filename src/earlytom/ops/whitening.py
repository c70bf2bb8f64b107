"""Whiten the tokens of a video: every direction in which they differ counts alike."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from earlytom.ops.tensors import CHUNK_BYTES, full_precision, slices, to_device

RANK = 128  # dimensions that are told apart; a video has far fewer kinds of things


def whitened(
    features: Tensor, ridge: float, rank: int = RANK, max_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Return the tokens of a video in coordinates in which their covariance is (nearly) the unit.

    Products of two rows are ``(x - m) (C / tr(C) + ridge I)^-1 (y - m)``, with ``m`` and ``C`` the
    mean and the covariance of the video's tokens: as in Mahalanobis' distance, with a ridge, which
    keeps directions of little more than noise from counting as much as the others. Features wider
    than ``rank`` are first projected to that many random directions, always the same ones: few
    directions hold nearly all the variance, and a random projection keeps those (Halko et al.,
    2011). No eigenvectors are needed, and nothing is read back to the host.

    Args:
        features: ``[T, S, D]`` of any float dtype; the maths is float32.
        ridge: share of the total variance that is added to every direction, above 0.
        rank: most directions.
        max_bytes: bound of the features held in float32 at a time (at least one frame).

    Returns:
        ``[T, S, min(D, rank)]`` float32, up to a common scale.
    """
    features = features.detach()
    n, size, dim = features.shape
    mean = features.mean((0, 1), dtype=torch.float32)
    basis = to_device(_directions(dim, rank), features.device, torch.float32)
    out = torch.empty(n, size, basis.shape[1], device=features.device)
    step = max(1, max_bytes // max(1, size * dim * 4))
    with full_precision(features.device):
        for a, b in slices(n, step):
            out[a:b] = (features[a:b].float() - mean) @ basis
        rows = out.flatten(0, 1)
        covariance = rows.mT @ rows / rows.shape[0]
        covariance /= covariance.trace().clamp_min(torch.finfo(torch.float32).tiny)
        covariance.diagonal().add_(ridge)
        factor = torch.linalg.cholesky_ex(covariance).L
        white = torch.linalg.solve_triangular(factor, rows.mT, upper=False)
        return white.mT.reshape(out.shape)


@lru_cache(maxsize=8)
def _directions(dim: int, rank: int) -> Tensor:
    """Return ``[dim, min(dim, rank)]`` random directions; all axes where there are few enough."""
    if dim <= rank:
        return torch.eye(dim)
    return torch.randn(dim, rank, generator=torch.Generator().manual_seed(0)) / rank**0.5
