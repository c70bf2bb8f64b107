"""Attention sinks over time and features in two dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXTREME = 3.0  # standard deviations above the mean of the frame
MOST = 0.5  # a sink is extreme in at least this share of the frames
POINTS = 1200  # most points of a scatter plot


@dataclass(frozen=True)
class Sinks:
    """Places that receive extreme attention in most frames.

    Attributes:
        places: of the cell, row by row.
        share: of all attention received by the video, what these places get.
    """

    places: tuple[int, ...]
    share: float


def find_sinks(received: Tensor) -> Sinks:
    """Find the places whose received attention is extreme in most frames.

    Args:
        received: ``[frames, tokens]``.
    """
    x = received.detach().float().cpu()
    spread = x.std(1, unbiased=False, keepdim=True).clamp_min(1e-12)
    extreme = (x - x.mean(1, keepdim=True)) / spread > EXTREME
    places = (extreme.float().mean(0) >= MOST).nonzero().flatten()
    total = float(x.sum())
    share = float(x[:, places].sum()) / total if total else 0.0
    return Sinks(tuple(places.tolist()), share)


@dataclass(frozen=True)
class Scatter:
    """Tokens in the plane of their two main directions.

    Attributes:
        points: ``(x, y)`` in [0, 1] of every token drawn, those kept last.
        kept: how many of them, at the end, are kept.
        total: tokens there are; more than ``points`` where only every n-th one is drawn.
        explained: share of the variance along either direction.
    """

    points: tuple[tuple[float, float], ...]
    kept: int
    total: int
    explained: tuple[float, float]


def scatter(features: Tensor, kept: Tensor) -> Scatter | None:
    """Project tokens on the first two principal components.

    Args:
        features: ``[tokens, dim]`` in front of the selection.
        kept: ``[tokens]`` bool.

    Returns:
        None with fewer than three tokens, or values that are not finite (patches were merged, so
        that there are no features in front of a selection).
    """
    x = features.detach().float()
    if len(x) < 3 or x.shape[1] < 2 or not bool(torch.isfinite(x).all()):
        return None
    x = x - x.mean(0)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(0)  # the basis is found from random directions
        _, values, basis = torch.svd_lowrank(x, q=min(6, *x.shape), niter=4)
    plane = (x @ basis[:, :2]).cpu()
    low, high = plane.amin(0), plane.amax(0)
    plane = (plane - low) / (high - low).clamp_min(1e-12)
    variance = float(x.square().sum()) or 1.0
    explained = [float(v) ** 2 / variance for v in values[:2]]
    kept = kept.cpu()
    step = -(-len(x) // POINTS)
    chosen, others = (m.nonzero().flatten()[::step] for m in (kept, ~kept))
    order = torch.cat([others, chosen])
    points = tuple((round(a, 3), round(b, 3)) for a, b in plane[order].tolist())
    return Scatter(points, len(chosen), len(x), (explained[0], explained[1]))
