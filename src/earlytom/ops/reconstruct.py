"""Estimate pruned patches from the patches that stay (IPCV: neighbour-guided reconstruction)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from earlytom.ops.cells import gather_rows
from earlytom.ops.tensors import full_precision


@dataclass(frozen=True)
class Reconstruction:
    """What pruning took away, and how the rest tells what became of it.

    Attributes:
        kept: ``[T, n]`` int64 ascending, patches that stay.
        removed: ``[T, R]`` int64 ascending, the others.
        before: ``[T, n, D]`` states of the kept patches when the others were pruned.
        pruned: ``[T, R, D]`` states of the others then.
        near: ``[T, R, n]`` 1 where a kept patch is a neighbour of a pruned one, else 0.
        neighbours: number of ones in each row.
    """

    kept: Tensor
    removed: Tensor
    before: Tensor
    pruned: Tensor
    near: Tensor
    neighbours: int

    @classmethod
    def start(cls, hidden: Tensor, kept: Tensor, neighbours: int) -> Reconstruction:
        """Split ``hidden [T, P, D]`` and find the nearest (Euclid) kept patches of every other.

        Args:
            hidden: states of all patches.
            kept: ``[T, n]`` int64 ascending, ``1 <= n <= P``.
            neighbours: at least 1, cut to ``n``.
        """
        t, p, _ = hidden.shape
        n = kept.shape[1]
        gone = torch.ones(t, p, dtype=torch.bool, device=hidden.device).scatter(1, kept, False)
        removed = gone.sort(dim=1, descending=True, stable=True).indices[:, : p - n]
        before, pruned = gather_rows(hidden, kept), gather_rows(hidden, removed)
        neighbours = min(neighbours, n)
        with full_precision(hidden.device):
            distance = torch.cdist(pruned.detach().float(), before.detach().float())
        nearest = distance.sort(dim=2, stable=True).indices[..., :neighbours]
        near = torch.zeros(distance.shape, dtype=hidden.dtype, device=hidden.device)
        near = near.scatter(2, nearest, 1.0)
        return cls(kept, removed, before, pruned, near, neighbours)

    def whole(self, hidden: Tensor) -> Tensor:
        """Return ``[T, P, D]`` from the kept patches now ``[T, n, D]``.

        A pruned patch has moved as much as its neighbours have on average.
        """
        where = (self.kept, self.removed, self.before, self.pruned, self.near)
        kept, removed, before, pruned, near = (x.to(hidden.device) for x in where)
        moved = torch.bmm(near, (hidden - before).to(near.dtype))
        estimate = pruned + (moved / self.neighbours).to(pruned.dtype)
        t, n, dim = hidden.shape
        full = hidden.new_empty(t, n + removed.shape[1], dim)
        full = full.scatter(1, kept[..., None].expand(-1, -1, dim), hidden)
        return full.scatter(1, removed[..., None].expand(-1, -1, dim), estimate.to(hidden.dtype))


def most_changed(now: Tensor, before: Tensor, count: int) -> Tensor:
    """Return ``[T, count]`` int64 ascending: the patches ``[T, P, D]`` that moved farthest.

    Ties go to the lowest index.
    """
    change = torch.linalg.vector_norm(now.detach().float() - before.float(), dim=-1)
    order = change.sort(dim=1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=1).values
