"""The merge plan: which input frames make up every output frame, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MergePlan:
    """A sparse row-stochastic matrix ``W [N, T]`` that merges ``T`` frames into ``N``.

    Merging is linear, so the same plan is applied to hidden states and to received attention.

    Attributes:
        n_input: number of frames ``T`` before the merge.
        members: for every output frame its input frames, ascending; the first one is the frame
            whose place (position, timestamp) the output keeps.
        weights: same shape as ``members``; every row sums to 1.
        groups: inclusive ``(start, end)`` segments of input frames that led to the decision.
    """

    n_input: int
    members: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    groups: tuple[tuple[int, int], ...] = ()

    @property
    def n_output(self) -> int:
        """Number of frames ``N`` after the merge."""
        return len(self.members)

    @classmethod
    def identity(cls, n: int, groups: tuple[tuple[int, int], ...] = ()) -> MergePlan:
        """Return the plan that keeps all ``n`` frames."""
        return cls(n, tuple((i,) for i in range(n)), ((1.0,),) * n, groups)

    def apply(self, x: Tensor) -> Tensor:
        """Merge ``x [T, ...]`` to ``[N, ...]`` in the dtype of ``x``; copied frames are bit-equal.

        Sums run in float32 (in the dtype of ``x`` if that is wider). Frames of weight 1 are
        gathered, not multiplied.
        """
        first = torch.tensor([m[0] for m in self.members], device=x.device)
        out = x.index_select(0, first)
        rows = [i for i, w in enumerate(self.weights) if w != (1.0,)]
        if not rows:
            return out
        width = max(len(self.members[i]) for i in rows)
        member = [list(self.members[i]) + [0] * (width - len(self.members[i])) for i in rows]
        weight = [list(self.weights[i]) + [0.0] * (width - len(self.weights[i])) for i in rows]
        index = torch.tensor(member, device=x.device)
        acc = torch.promote_types(x.dtype, torch.float32)
        w = torch.tensor(weight, device=x.device, dtype=acc).view(*index.shape, *[1] * (x.dim() - 1))
        merged = x.index_select(0, index[:, 0]).to(acc) * w[:, 0]
        for k in range(1, width):
            merged += x.index_select(0, index[:, k]).to(acc) * w[:, k]
        return out.index_copy(0, torch.tensor(rows, device=x.device), merged.to(x.dtype))

    def dense(self) -> Tensor:
        """Return ``W [N, T]`` in float64 on the CPU (for tests and drawings)."""
        w = torch.zeros(self.n_output, self.n_input, dtype=torch.float64)
        for row, (members, weights) in enumerate(zip(self.members, self.weights, strict=True)):
            for m, value in zip(members, weights, strict=True):
                w[row, m] += value
        return w

    def then(self, after: MergePlan) -> MergePlan:
        """Return the plan that applies ``self`` first and ``after`` to its result."""
        members, weights = [], []
        for row, row_w in zip(after.members, after.weights, strict=True):
            total: dict[int, float] = {}
            for m, a in zip(row, row_w, strict=True):
                for frame, b in zip(self.members[m], self.weights[m], strict=True):
                    total[frame] = total.get(frame, 0.0) + a * b
            frames = sorted(total)
            members.append(tuple(frames))
            weights.append(tuple(total[f] for f in frames))
        return MergePlan(self.n_input, tuple(members), tuple(weights), after.groups)
