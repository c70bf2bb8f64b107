"""Exact frame budgets decided on the device: the plan of :mod:`earlytom.ops.budget` as tensors.

Every shape depends only on how many frames there are and how many are to be left, and nothing is
read by the host, so that a compiler or a CUDA graph can take the decision in. Sums run in float64
in the order of the host form, and groups are contiguous: decisions and weights are equal to those
of :func:`earlytom.ops.budget.plan_budget` bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from earlytom.ops.budget import check_plan, needed_width, rounds
from earlytom.ops.similarity import band_of_worst


class DevicePlan(NamedTuple):
    """The merge plans of ``B`` videos of ``n`` frames each, ``target`` frames left of each.

    Attributes:
        first: ``[B, target]`` int64, first input frame of every output frame; the others follow it
            up to the next output frame's first.
        counts: ``[B, target]`` int64, frames of the video that every output frame stands for.
        members: ``[B, target, k]`` int64, members of every output frame, the first repeated where
            there are fewer than ``k``; ``k`` is 1 if frames are only copied.
        weights: ``[B, target, k]`` float64, their weights; rows sum to 1.
    """

    first: Tensor
    counts: Tensor
    members: Tensor
    weights: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Merge ``x [B, n, ...]`` to ``[B, target, ...]`` in the dtype of ``x``.

        The same sums in the same order as :meth:`earlytom.ops.plan.MergePlan.apply`, so finite
        states are equal bit for bit. Frames with one member too: 0 times that member is added.
        """
        copied = _frames(x, self.first)
        if self.members.shape[-1] == 1:
            return copied
        acc = torch.promote_types(x.dtype, torch.float32)
        weight = self.weights.to(acc).view(*self.weights.shape, *[1] * (x.dim() - 2))
        merged = copied.to(acc) * weight[:, :, 0]
        for k in range(1, self.members.shape[-1]):
            merged = merged + _frames(x, self.members[:, :, k]).to(acc) * weight[:, :, k]
        return merged.to(x.dtype)


@dataclass(frozen=True)
class FixedMerge:
    """A merge point whose number of frames is known before the video is seen.

    Args:
        target: frames left, at least 1. Nothing happens to a video with as few or fewer.
        worst_share: see :func:`earlytom.ops.similarity.band_similarity`.
        fuse: ``first`` or ``average``, see :func:`earlytom.ops.budget.plan_budget`.
    """

    target: int
    worst_share: float | None = None
    fuse: str = "first"

    def plan(self, hidden: Tensor, counts: Tensor, n_worst: int | None) -> DevicePlan:
        """Decide the merge of ``B`` videos; ``target`` must be less than their frames.

        Args:
            hidden: ``[B, n, patches, dim]`` of any float dtype.
            counts: ``[B, n]`` int64, frames of the video that every frame stands for.
            n_worst: :func:`earlytom.ops.similarity.worst_patches` of ``worst_share``.
        """
        width = needed_width(hidden.shape[1], self.target)
        band = torch.stack([band_of_worst(x, width, n_worst) for x in hidden.unbind()])
        return plan_on_device(band, self.target, counts, self.fuse)


def pairs_on_device(similarity: Tensor, count: int) -> Tensor:
    """Choose disjoint neighbouring pairs as :func:`earlytom.ops.budget.choose_pairs` does.

    The table is filled pair by pair instead of frame by frame: with ``j`` pairs in elements from
    ``i`` on, ``best_j[i] = max over i' >= i of s_i' + best_{j-1}[i' + 2]``. Maxima are exact, so
    these are the same numbers.

    Args:
        similarity: ``[B, m - 1]`` finite, of a chain of ``m`` elements.
        count: number of pairs, at least 1.

    Returns:
        ``[B, count]`` int64, first element of every pair, ascending.

    Raises:
        ValueError: more pairs than the chain has room for.
    """
    m = similarity.shape[1] + 1
    if not 1 <= count <= m // 2:
        raise ValueError(f"a chain of {m} has room for {m // 2} disjoint pairs, not {count}")
    backwards = similarity.double().flip(1)  # a running maximum from the right
    nothing = torch.full_like(backwards[:, :1], -torch.inf)
    best, beyond, wins = torch.zeros_like(backwards), torch.zeros_like(nothing), []
    for _ in range(count):
        taken = backwards + torch.cat([beyond, beyond, best], 1)[:, : m - 1]
        best, beyond = taken.cummax(1).values, nothing
        # a pair is taken if that is at least as good as going on without it
        wins.append(taken >= torch.cat([nothing, best[:, :-1]], 1))
    place = torch.arange(m - 2, -1, -1, device=similarity.device)
    # next place from i on where a pair is taken, for every number of pairs left
    following = torch.where(torch.stack(wins, 1), place, m - 2).cummin(2).values.flip(2)
    at = torch.zeros_like(following[:, 0, :1])
    chosen = []
    for j in range(count - 1, -1, -1):
        chosen.append(following[:, j].gather(1, at))
        at = chosen[-1] + 2
    return torch.cat(chosen, 1)


def plan_on_device(band: Tensor, target: int, counts: Tensor, fuse: str = "average") -> DevicePlan:
    """Fuse neighbours of ``B`` videos until exactly ``target`` frames are left of each.

    Args:
        band: ``[B, width, n]`` of :func:`earlytom.ops.similarity.band_similarity`, at least
            :func:`earlytom.ops.budget.needed_width` wide. Values that are not finite count as 0:
            no place outside of the video is ever read, but the plan then means nothing.
        target: frames afterwards, in [1, n].
        counts: ``[B, n]`` int64, frames of the video that every frame stands for.
        fuse: ``average`` or ``first``.

    Raises:
        ValueError: ``target`` out of range or unknown ``fuse``.
    """
    videos, n = counts.shape
    check_plan(n, target, fuse)
    band = torch.where(torch.isfinite(band), band, 0.0).flatten(1)
    heads = torch.arange(n, device=band.device).expand(videos, n)
    pairs = rounds(n, target)
    for count in pairs:
        apart = heads[:, 1:] - heads[:, :-1]
        chosen = pairs_on_device(band.gather(1, (apart - 1) * n + heads[:, :-1]), count)
        # the k-th pair becomes element chosen_k - k: elements behind it move up by one
        element = torch.arange(heads.shape[1] - count, device=band.device)
        becomes = chosen - torch.arange(count, device=band.device)
        shift = (element[:, None] > becomes[:, None, :]).sum(2)
        heads = heads.gather(1, element + shift)
    ends = torch.cat([heads[:, 1:], torch.full_like(heads[:, :1], n)], 1)
    upto = torch.cat([torch.zeros_like(counts[:, :1]), counts.cumsum(1)], 1)
    total = upto.gather(1, ends) - upto.gather(1, heads)
    if fuse == "first":
        index = heads[:, :, None]
        return DevicePlan(heads, total, index, torch.ones_like(index, dtype=torch.float64))
    step = torch.arange(min(2 ** len(pairs), n - target + 1), device=band.device)
    member = heads[:, :, None] + step
    there = member < ends[:, :, None]
    member = torch.where(there, member, heads[:, :, None])
    part = counts.gather(1, member.flatten(1)).view(member.shape)
    weight = part.double() / total[:, :, None].double()
    return DevicePlan(heads, total, member, torch.where(there, weight, 0.0))


def _frames(x: Tensor, index: Tensor) -> Tensor:
    """Return frames ``index [B, m]`` of ``x [B, n, ...]``."""
    start = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]
    return x.flatten(0, 1).index_select(0, (index + start).flatten()).unflatten(0, index.shape)
