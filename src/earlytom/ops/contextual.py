"""Keep the tokens that attention looks at and merge the others into a few (VisionZip)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from earlytom.ops.select import mask_index, top_per_frame
from earlytom.ops.tensors import full_precision, to_device, unit_rows


@dataclass(frozen=True)
class Zipped:
    """Tokens of all frames after :func:`zip_frames`.

    Attributes:
        index: ``[k]`` int64, ascending indices into ``N * S``; contextual tokens stand where
            their target stood.
        features: ``[k, D]`` in the dtype given; dominant tokens are copies.
        weight: ``[k]`` float32 number of tokens that each stands for.
        dominant: ``[k]`` bool, False for contextual tokens.
    """

    index: Tensor
    features: Tensor
    weight: Tensor
    dominant: Tensor


def zip_frames(
    features: Tensor,
    score: Tensor,
    keys: Tensor,
    dominant: Sequence[int],
    contextual: Sequence[int],
    average: bool = True,
) -> Zipped:
    """Keep the tokens of largest score of every frame, merge the others into evenly spaced ones.

    Of the tokens that are not dominant, every ``max(1, rest // contextual)``-th is a target; all
    others join the target of most similar key.

    Args:
        features: ``[N, S, D]`` of any float dtype; the maths is float32.
        score: ``[N, S]``, e.g. received attention.
        keys: ``[N, S, E]`` what similarity is measured by.
        dominant: ``N`` numbers of tokens kept as they are.
        contextual: ``N`` numbers of merged tokens; ``dominant[n] + contextual[n] <= S``.
        average: a merged token is the mean of its members (VisionZip, section 3.2); False: the
            target plus the mean of those that joined it, as released.
    """
    n, size = score.shape
    device = score.device
    keep = top_per_frame(score, dominant)
    total, slots = sum(dominant) + sum(contextual), max(contextual)
    rows = features.flatten(0, 1)
    if slots == 0:
        index = mask_index(keep, total)
        copies = rows.index_select(0, index)
        ones = torch.ones(total, device=device)
        return Zipped(index, copies, ones, ones.bool())

    gaps = [max(1, (size - d) // c) if c else 1 for d, c in zip(dominant, contextual, strict=True)]
    gap, count = to_device([gaps, list(contextual)], device)[..., None]  # [N, 1] each
    rest = ~keep
    rank = rest.cumsum(1) - 1  # among the rest
    target = rest & (rank % gap == 0) & (rank < gap * count)
    place = torch.arange(size, device=device).expand(n, size)
    place = torch.where(target, place, size).sort(1).values[:, :slots]  # [N, C]; size = none
    missing, place = place == size, place.clamp_max(size - 1)

    def at_targets(x: Tensor) -> Tensor:
        return x.gather(1, place[..., None].expand(-1, -1, x.shape[-1]))

    with full_precision(device):
        unit = unit_rows(keys)
        similar = (unit @ at_targets(unit).mT).masked_fill_(missing[:, None], -torch.inf)
        slot = torch.arange(slots, device=device)
        joins = (similar.argmax(-1, keepdim=True) == slot) & (rest & ~target)[..., None]
        joined = joins.sum(1)[..., None]  # [N, C, 1]
        added = joins.float().mT @ features.float()  # [N, C, D]
    own = at_targets(features).float()
    if average:
        merged = (own + added) / (1 + joined)
    else:
        merged = own + added / joined.clamp_min(1)

    index = mask_index(keep | target, total)
    is_dominant = keep.flatten()[index]
    number = (target.cumsum(1) - 1).flatten()[index].clamp_min(0)
    number += torch.div(index, size, rounding_mode="floor") * slots
    values = merged.flatten(0, 1)[number].to(features.dtype)
    values = torch.where(is_dominant[:, None], rows.index_select(0, index), values)
    weight = torch.where(is_dominant, 0, joined.flatten()[number]).float() + 1
    return Zipped(index, values, weight, is_dominant)
