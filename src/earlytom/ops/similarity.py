"""How alike frames are: cosine similarities near the diagonal, read by the host once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from earlytom import kernels
from earlytom.ops.tensors import CHUNK_BYTES, exact, full_precision, not_finite, slices
from earlytom.trace import note

_BLOCK = 4  # frames of a block per frame of the band's width
_TINY = 1e-12


@dataclass(frozen=True)
class FrameBand:
    """Similarities of frames at most ``width`` apart, as plain floats on the host.

    Attributes:
        n: number of frames.
        rows: ``rows[d - 1][i]`` is the similarity of frames ``i`` and ``i + d``.
    """

    n: int
    rows: tuple[tuple[float, ...], ...]

    @property
    def width(self) -> int:
        """Largest distance of two frames that was measured."""
        return len(self.rows)

    def __call__(self, i: int, j: int) -> float:
        """Return the similarity of frames ``i < j``."""
        return self.rows[j - i - 1][i]

    def adjacent(self) -> tuple[float, ...]:
        """Return the similarities of all neighbours: ``n - 1`` values."""
        return self.rows[0] if self.rows else ()


def band_similarity(
    x: Tensor, width: int, worst_share: float | None = None, max_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Return the similarity of every pair of frames at most ``width`` apart.

    ``Sim(a, b)`` is the mean over patches of ``cos(a[s], b[s])`` (EarlyTom, eq. of section 3), or
    with ``worst_share`` the mean over that share of patches (at least one) with the smallest
    cosine: a small change must not drown in a large still background.

    Args:
        x: ``[T, S, D]`` of any float dtype; the maths is float32.
        width: largest distance ``d``; at most ``T - 1`` is used.
        worst_share: None for the mean over all patches, else a share in (0, 1].
        max_bytes: bound of the frames in float32 at a time (beyond the ``width`` needed anyway).

    Returns:
        ``[min(width, T - 1), T]`` float32; element ``[d - 1, i]`` compares frames ``i`` and
        ``i + d``. Elements without a partner (``i + d >= T``) are 0. Memory is O(T S D), never
        ``[T, T, S, D]``.
    """
    return band_of_worst(x, width, worst_patches(worst_share, x.shape[1]), max_bytes)


def worst_patches(worst_share: float | None, patches: int) -> int | None:
    """Return how many of ``patches`` count under ``worst_share``; None: the mean over all."""
    return None if worst_share is None else max(1, math.ceil(exact(worst_share) * patches))


def band_of_worst(
    x: Tensor, width: int, n_worst: int | None, max_bytes: int = CHUNK_BYTES
) -> Tensor:
    """Return :func:`band_similarity` for a number of patches; fit for a compiler (no fractions)."""
    n, patches, dim = x.shape
    width = max(0, min(width, n - 1))
    out = torch.zeros(width, n, dtype=torch.float32, device=x.device)
    if width and kernels.use(x):
        from earlytom.kernels.similarity import band_cosines

        return _over_patches(band_cosines(x, width), n_worst)
    # a block of frames in one product per patch reads them once, for little more than the band
    step = max(1, min(_BLOCK * width, max_bytes // max(1, patches * dim * 4)))
    for start, end in slices(n - 1 if width else 0, step):
        cosines = _cosines(x[start : end + width])
        for d in range(1, min(width, cosines.shape[1] - 1) + 1):
            pairs = _over_patches(cosines.diagonal(d, 1, 2).mT[:step], n_worst)
            out[d - 1, start : start + pairs.numel()] = pairs
    return out


def _cosines(x: Tensor) -> Tensor:
    """Return the cosines ``[S, t, t]`` of all pairs of frames ``[t, S, D]``, per patch."""
    rows = x.float().transpose(0, 1)
    with full_precision(x.device):
        gram = rows @ rows.mT
    norm = gram.diagonal(0, 1, 2).sqrt().clamp_min(_TINY)
    return gram / (norm[:, :, None] * norm[:, None, :])


def _over_patches(cosine: Tensor, n_worst: int | None) -> Tensor:
    """Return the mean over the last dimension, or over its ``n_worst`` smallest elements."""
    if n_worst is not None:
        cosine = cosine.topk(n_worst, dim=-1, largest=False).values
    return cosine.mean(-1)


def measure_frames(
    x: Tensor, width: int, worst_share: float | None = None, max_bytes: int = CHUNK_BYTES
) -> FrameBand:
    """Bring :func:`band_similarity` to the host: the one synchronisation of a merge point.

    Raises:
        VideoError: ``x`` holds NaN or infinite values (seen in the same copy).
    """
    band = band_similarity(x, width, worst_share, max_bytes)
    # a mean over all patches is NaN if one of them is; the smallest ones may leave it out
    shown = band
    if worst_share is not None or not len(band):
        shown = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    finite = torch.isfinite(shown).all().expand(1, x.shape[0]).float()
    host = torch.cat([finite, band]).tolist()
    if host[0][0] != 1.0:
        raise not_finite(x.shape[0])
    n = x.shape[0]
    found = FrameBand(n, tuple(tuple(row[: n - d]) for d, row in enumerate(host[1:], start=1)))
    note("similarity", band=found)
    return found
