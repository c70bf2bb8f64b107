"""How alike frames are: cosine similarities near the diagonal, read by the host once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from earlytom.ops.tensors import CHUNK_BYTES, exact, not_finite, slices, unit_rows


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
        max_bytes: bound of the frames normalised at a time (beyond the ``width`` needed anyway).

    Returns:
        ``[min(width, T - 1), T]`` float32; element ``[d - 1, i]`` compares frames ``i`` and
        ``i + d``. Elements without a partner (``i + d >= T``) are 0. Memory is O(T S D), never
        ``[T, T, S, D]``.
    """
    n, patches, dim = x.shape
    width = max(0, min(width, n - 1))
    out = torch.zeros(width, n, dtype=torch.float32, device=x.device)
    n_worst = None if worst_share is None else max(1, math.ceil(exact(worst_share) * patches))
    step = max(1, max_bytes // max(1, patches * dim * 4))
    for start, end in slices(n - 1 if width else 0, step):
        unit = unit_rows(x[start : end + width])
        for d in range(1, width + 1):
            pairs = min(end, n - d) - start
            if pairs <= 0:
                break
            cosine = (unit[:pairs] * unit[d : d + pairs]).sum(-1)
            if n_worst is not None:
                cosine = cosine.topk(n_worst, dim=-1, largest=False).values
            out[d - 1, start : start + pairs] = cosine.mean(-1)
    return out


def measure_frames(
    x: Tensor, width: int, worst_share: float | None = None, max_bytes: int = CHUNK_BYTES
) -> FrameBand:
    """Bring :func:`band_similarity` to the host: the one synchronisation of a merge point.

    Raises:
        VideoError: ``x`` holds NaN or infinite values (seen in the same copy).
    """
    band = band_similarity(x, width, worst_share, max_bytes)
    norms = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    finite = torch.isfinite(norms).all().expand(1, x.shape[0]).float()
    host = torch.cat([finite, band]).tolist()
    if host[0][0] != 1.0:
        raise not_finite(x.shape[0])
    n = x.shape[0]
    return FrameBand(n, tuple(tuple(row[: n - d]) for d, row in enumerate(host[1:], start=1)))
