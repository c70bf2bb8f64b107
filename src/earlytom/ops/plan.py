"""The merge plan: which input frames make up every output frame, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from earlytom import kernels
from earlytom.ops.tensors import CHUNK_BYTES, slices, to_device

Groups = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class MergePlan:
    """A sparse matrix ``W [N, T]`` with rows of sum 1 that merges ``T`` frames into ``N``.

    Merging is linear, so the same plan is applied to hidden states and to received attention.

    Attributes:
        n_input: number of frames ``T`` before the merge.
        members: for every output frame its input frames, ascending; the first one is the frame
            whose place (position, timestamp) the output keeps.
        weights: same shape as ``members``; every row sums to 1. A member may have weight 0: it is
            represented by the output frame without changing it.
        groups: inclusive ``(start, end)`` segments of input frames that led to the decision.
    """

    n_input: int
    members: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    groups: Groups = ()

    @property
    def n_output(self) -> int:
        """Number of frames ``N`` after the merge."""
        return len(self.members)

    @property
    def is_identity(self) -> bool:
        """Whether applying the plan changes nothing."""
        return self._sources() == list(range(self.n_input))

    @classmethod
    def identity(cls, n: int, groups: Groups = ()) -> MergePlan:
        """Return the plan that keeps all ``n`` frames."""
        return cls(n, tuple((i,) for i in range(n)), ((1.0,),) * n, groups)

    def apply(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """Merge ``x [T, ...]`` to ``[N, ...]`` in the dtype of ``x``; copied frames are bit-equal.

        Sums run in float32 (in the dtype of ``x`` if that is wider). Frames that are a copy of one
        member are gathered, not multiplied: a member of weight 0 is never read. The identity
        returns ``x`` itself.

        Args:
            x: one entry per frame.
            overwrite: the result may lie where ``x`` does. On a CPU that is several times as fast:
                most of a large copy is the system handing out memory.

        Raises:
            ValueError: ``x`` does not have ``n_input`` frames.
        """
        if x.shape[0] != self.n_input:
            raise ValueError(f"this plan merges {self.n_input} frames, got {x.shape[0]}")
        sources = self._sources()
        if sources == list(range(self.n_input)):
            return x
        if kernels.use(x):
            from earlytom.kernels.merge import merge_frames

            return merge_frames(x, *self._counting())
        if overwrite and self._shrinks() and x.is_contiguous():
            return self._apply_over(x, sources)
        gathered = [m[0] if s is None else s for s, m in zip(sources, self.members, strict=True)]
        out = x.index_select(0, to_device(gathered, x.device))
        rows = [i for i, s in enumerate(sources) if s is None]
        if not rows:
            return out
        members, weights = self._counting()
        width = max(len(members[i]) for i in rows)
        # padding repeats the row's first member: it must not read (0 * NaN) an unrelated frame
        member = [_pad(members[i], width, members[i][0]) for i in rows]
        weight = [_pad(weights[i], width, 0.0) for i in rows]
        index = to_device(member, x.device)
        acc = torch.promote_types(x.dtype, torch.float32)
        w = to_device(weight, x.device, acc).view(*index.shape, *[1] * (x.dim() - 1))
        where = to_device(rows, x.device)
        step = max(1, CHUNK_BYTES // max(1, x[0].numel() * 4))  # frames in float32 at a time
        for a, b in slices(len(rows), step):
            merged = x.index_select(0, index[a:b, 0]).to(acc) * w[a:b, 0]
            for k in range(1, width):
                merged += x.index_select(0, index[a:b, k]).to(acc) * w[a:b, k]
            out.index_copy_(0, where[a:b], merged.to(x.dtype))
        return out

    def _shrinks(self) -> bool:
        """Whether no frame is read once its place has been written, going through the outputs."""
        return all(min(row) >= i for i, row in enumerate(self._counting()[0]))

    def _apply_over(self, x: Tensor, sources: list[int | None]) -> Tensor:
        acc = torch.promote_types(x.dtype, torch.float32)
        for i, (source, members, weights) in enumerate(
            zip(sources, *self._counting(), strict=True)
        ):
            if source is None:
                merged = x[members[0]].to(acc) * weights[0]
                for m, w in zip(members[1:], weights[1:], strict=True):
                    merged += x[m].to(acc) * w
                x[i].copy_(merged)
            elif source != i:
                x[i].copy_(x[source])
        return x[: self.n_output]

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

    def at_least(self, n: int) -> MergePlan:
        """Return this plan, or one with ``n`` frames left where this one leaves fewer.

        The largest group is cut in the middle until there are enough (of equal ones the first);
        weights keep their proportions, or go to the first member where they do not add up to more
        than 0.
        """
        rows = sorted(zip(self.members, self.weights, strict=True), key=lambda row: row[0][0])
        while len(rows) < min(n, self.n_input):
            largest = max(range(len(rows)), key=lambda i: len(rows[i][0]))
            members, weights = rows[largest]
            half = len(members) // 2
            if not half:
                break
            rows[largest : largest + 1] = [
                (members[part], _normed(weights[part])) for part in (slice(half), slice(half, None))
            ]
            rows.sort(key=lambda row: row[0][0])
        if len(rows) == self.n_output:
            return self
        left, weighed = zip(*rows, strict=True)
        return MergePlan(self.n_input, left, weighed, self.groups)

    def _sources(self) -> list[int | None]:
        """Return per output frame the input frame that it copies, or None if it is a sum."""
        found: list[int | None] = []
        for members, weights in zip(self.members, self.weights, strict=True):
            used = [m for m, w in zip(members, weights, strict=True) if w != 0.0]
            found.append(used[0] if len(used) == 1 and 1.0 in weights else None)
        return found

    def _counting(self) -> tuple[list[list[int]], list[list[float]]]:
        """Return members and weights without those of weight 0."""
        rows = [
            [(m, w) for m, w in zip(*row, strict=True) if w != 0.0]
            for row in zip(self.members, self.weights, strict=True)
        ]
        return [[m for m, _ in row] for row in rows], [[w for _, w in row] for row in rows]


def _normed(weights: tuple[float, ...]) -> tuple[float, ...]:
    total = sum(weights)
    if total <= 0:
        return (1.0,) + (0.0,) * (len(weights) - 1)
    return weights if total == 1 else tuple(w / total for w in weights)


def _pad(row: list[Any], width: int, fill: Any) -> list[Any]:
    return [*row, *[fill] * (width - len(row))]
