"""Which tokens of a frame stay, which ones they take in, and the merge itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from earlytom.ops.tensors import CHUNK_BYTES, full_precision, slices


@dataclass(frozen=True)
class Grouping:
    """A reduction of ``n`` tokens to ``m``, the same numbers in every frame.

    Tokens in neither ``kept`` nor ``source`` are dropped.

    Attributes:
        kept: ``[T, m]`` int64, the token that every output token continues, in output order.
        source: ``[T, r]`` int64, tokens that join another one.
        into: ``[T, r]`` int64 in [0, m), the output token that each of them joins.
    """

    kept: Tensor
    source: Tensor
    into: Tensor

    @classmethod
    def keep(cls, kept: Tensor) -> Grouping:
        """Keep the tokens ``[T, m]`` and drop all others."""
        none = kept[:, :0]
        return cls(kept, none, none)

    def target(self, n: int) -> Tensor:
        """Return ``[T, n]`` int64: the output token of every token, -1 if it is dropped."""
        frames, m = self.kept.shape
        slot = torch.arange(m, device=self.kept.device).expand(frames, m)
        out = torch.full((frames, n), -1, dtype=torch.int64, device=self.kept.device)
        return out.scatter(1, self.kept, slot).scatter(1, self.source, self.into)

    def weights(self, size: Tensor) -> Tensor:
        """Return ``[T, m, r]`` float32: the size of every source at the token that it joins."""
        m = self.kept.shape[1]
        slot = torch.arange(m, device=self.into.device)[:, None]
        joins = self.into[:, None] == slot
        return joins * size.float().gather(1, self.source)[:, None]

    def merge(self, x: Tensor, size: Tensor, max_bytes: int = CHUNK_BYTES) -> tuple[Tensor, Tensor]:
        """Return the mean of every output token over the patches it stands for.

        Args:
            x: ``[T, n, D]`` of any float dtype; the maths is float32.
            size: ``[T, n]`` patches that each token stands for.
            max_bytes: bound of a temporary; at least one frame at a time.

        Returns:
            ``[T, m, D]`` in the dtype of ``x`` (a token that nothing joins is a bit copy) and its
            sizes ``[T, m]`` float32.
        """
        m, r = self.kept.shape[1], self.source.shape[1]
        own = size.float().gather(1, self.kept)
        copies = rows_at(x, self.kept)
        if r == 0:
            return copies, own
        step = max(1, max_bytes // (4 * m * r))
        parts = [
            Grouping(self.kept[a:b], self.source[a:b], self.into[a:b])._blend(
                x[a:b], size[a:b], own[a:b], copies[a:b]
            )
            for a, b in slices(x.shape[0], step)
        ]
        values, sizes = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(sizes)

    def _blend(self, x: Tensor, size: Tensor, own: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        return blend(copies, own, rows_at(x, self.source), self.weights(size))


def blend(
    x: Tensor, own: Tensor, sources: Tensor, weights: Tensor, max_bytes: int = CHUNK_BYTES
) -> tuple[Tensor, Tensor]:
    """Return ``(own_j x_j + sum_i w_ji s_i) / (own_j + sum_i w_ji)`` and the denominator.

    Args:
        x: ``[T, m, D]`` tokens that stay.
        own: ``[T, m]`` float32, their own weight.
        sources: ``[T, r, D]`` tokens that join.
        weights: ``[T, m, r]`` float32; a token whose row is zero is a bit copy.
        max_bytes: bound of a temporary; at least one frame at a time.

    Returns:
        ``[T, m, D]`` in the dtype of ``x``, and ``[T, m]`` float32.
    """
    added = weights.sum(2)
    total = own + added
    share = own[..., None]
    parts = []
    with full_precision(x.device):
        for a, b in slices(x.shape[0], max(1, max_bytes // (4 * x[0].numel()))):
            mixed = share[a:b] * x[a:b].float() + weights[a:b] @ sources[a:b].float()
            parts.append((mixed / total[a:b, :, None]).to(x.dtype))
    return torch.where((added == 0)[..., None], x, torch.cat(parts)), total


def rows_at(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows ``index [T, k]`` of ``x [T, n, D]``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def descending(score: Tensor) -> Tensor:
    """Return the order ``[T, n]`` of descending score; ties: lowest index first."""
    return score.sort(dim=1, descending=True, stable=True).indices
