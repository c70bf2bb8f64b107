"""Cut a video at its changes, and let anchor tokens absorb the tokens of a segment (FastVID)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from earlytom.ops.plan import Groups
from earlytom.ops.tensors import CHUNK_BYTES, full_precision, slices, to_device, unit_rows


def cut_frames(similarity: np.ndarray, segments: int, tau: float) -> Groups:
    """Cut at the ``segments - 1`` least similar steps and wherever one is below ``tau`` (DySeg).

    Args:
        similarity: ``[T - 1]`` of every frame and the next one; ties: the lowest index first.
        segments: least number of segments (as far as there are frames).
        tau: threshold.

    Returns:
        Inclusive ``(first, last)`` frames of every segment.
    """
    cut = similarity < tau
    cut[np.argsort(similarity, kind="stable")[: segments - 1]] = True
    last = [*np.flatnonzero(cut).tolist(), len(similarity)]
    return tuple(zip([0, *(t + 1 for t in last[:-1])], last, strict=True))


def probe_attention(
    hidden: Tensor, probe: Tensor, weight: Tensor, bias: Tensor | None, heads: int
) -> Tensor:
    """Return the attention that the probe of an attention-pooling head pays to every patch.

    Args:
        hidden: ``[B, S, D]`` what the head is given (behind the encoder's last norm).
        probe: ``[..., D]``, one learned query.
        weight: ``[3 D, D]`` query, key and value projection (``nn.MultiheadAttention``).
        bias: ``[3 D]`` or None.
        heads: attention heads.

    Returns:
        ``[B, S]`` float32, mean over heads; every row sums to 1.
    """
    dim = hidden.shape[-1]
    with full_precision(hidden.device):
        rows = weight.float()
        offset = torch.zeros_like(rows[:, 0]) if bias is None else bias.float()
        query = rows[:dim] @ probe.float().flatten() + offset[:dim]
        # the bias of the keys adds the same to every patch: softmax does not see it
        key = rows[dim : 2 * dim].unflatten(0, (heads, -1))
        look = torch.einsum("he,hed->hd", query.view(heads, -1), key)
        logits = hidden.float() @ look.mT * (dim // heads) ** -0.5
        return logits.softmax(1).mean(2)


@dataclass(frozen=True)
class Absorbed:
    """Anchors after :func:`absorb`, float32 and in the order given.

    Attributes:
        values: ``[K, D]``.
        weight: ``[K]`` how many tokens each stands for: itself, and its part of every token that
            stays nowhere else (shared by the anchor frames of a segment).
    """

    values: Tensor
    weight: Tensor


def absorb(
    x: Tensor,
    taken: Tensor,
    groups: Groups,
    anchors: Sequence[tuple[int, int]],
    place: Tensor,
    beta: float,
    itself: bool = False,
    max_bytes: int = CHUNK_BYTES,
) -> Absorbed:
    """Blend every anchor with the tokens of its segment that are most like it (DTM).

    For every anchor frame on its own, each token of the whole segment joins that frame's most
    similar anchor (cosine), which becomes ``w anchor + (1 - w) mean`` of what joined, with
    ``w = max(beta, 1 / (joined + 1))``.

    Args:
        x: ``[T, S, D]`` of any float dtype; the maths is float32.
        taken: ``[T, S]`` bool, tokens that join nothing (kept as they are).
        groups: segments, see :func:`cut_frames`.
        anchors: ``(frame, number of anchors)`` of every anchor frame, ascending.
        place: ``[K]`` int64 place of every anchor in ``T * S``, by anchor frame.
        beta: least weight of the anchor, in [0, 1].
        itself: an anchor joins the anchors of its own frame as well, as released.
        max_bytes: bound of the frames at a time (at least one).
    """
    (n, size, dim), device, count = x.shape, x.device, place.numel()
    if count == 0:
        return Absorbed(torch.zeros(0, dim, device=device), torch.zeros(0, device=device))
    table, frames = _slots(groups, anchors)
    width = table.shape[1] * table.shape[2]
    owner = to_device([g for g, (a, b) in enumerate(groups) for _ in range(a, b + 1)], device)
    slot, own_frame = to_device(table, device), to_device(frames, device)
    sharing = to_device((table[..., 0] >= 0).sum(1).clip(min=1), device, torch.float32)
    origin = x.flatten(0, 1).index_select(0, place).float()
    unit = unit_rows(origin)
    anchor = torch.zeros(n * size, dtype=torch.bool, device=device)
    anchor = anchor.index_fill(0, place, True).view(n, size)
    total = torch.zeros(count + 1, dim, device=device)  # the last row takes what is no anchor
    joined, weight = torch.zeros(count + 1, device=device), torch.zeros(count + 1, device=device)
    step = max(1, max_bytes // (4 * (3 * size * width + 2 * (size + width) * dim)))
    for a, b in slices(n, step):
        here = slot.index_select(0, owner[a:b])  # [n, J, Q] number of the anchor, -1 = none
        flat = here.flatten(1)
        with full_precision(device):
            rows = unit.index_select(0, flat.clamp_min(0).flatten()).view(*flat.shape, dim)
            similar = unit_rows(x[a:b]) @ rows.mT
            similar = similar.masked_fill_((flat < 0)[:, None], -torch.inf)
            best = similar.unflatten(2, here.shape[1:]).argmax(3)  # [n, S, J]
            may = ~taken[a:b, :, None] & (here[..., 0] >= 0)[:, None]
            if not itself:
                t = torch.arange(a, b, device=device)
                at_home = own_frame.index_select(0, owner[a:b]) == t[:, None]
                may = may & ~(anchor[a:b, :, None] & at_home[:, None])
            number = torch.arange(here.shape[2], device=device)
            joins = ((best[..., None] == number) & may[..., None]).flatten(2).float()
            added = joins.mT @ x[a:b].float()  # [n, J Q, D]
            alone = joins * ~anchor[a:b, :, None]
        target = torch.where(flat < 0, count, flat).flatten()
        total.index_add_(0, target, added.flatten(0, 1))
        joined.index_add_(0, target, joins.sum(1).flatten())
        part = alone.sum(1) / sharing.index_select(0, owner[a:b])[:, None]
        weight.index_add_(0, target, part.flatten())
    number = joined[:-1, None]
    w = (1 / (number + 1)).clamp_min(beta)
    values = w * origin + (1 - w) * total[:-1] / number.clamp_min(1)
    return Absorbed(values, weight[:-1] + 1)


def _slots(groups: Groups, anchors: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return per segment the numbers of its anchors ``[G, J, Q]`` (-1: none) and frames [G, J]."""
    per_group = [[(t, c) for t, c in anchors if a <= t <= b and c] for a, b in groups]
    most = max(1, *map(len, per_group))
    widest = max((c for _, c in anchors), default=0)
    table = np.full((len(groups), most, max(1, widest)), -1)
    frames = np.full((len(groups), most), -1)
    start = 0
    for g, members in enumerate(per_group):
        for j, (t, c) in enumerate(members):
            table[g, j, :c] = range(start, start + c)
            frames[g, j] = t
            start += c
    return table, frames
