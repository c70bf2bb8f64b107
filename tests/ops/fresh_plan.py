"""Plans of fresh patches, and the attention they stand for, frame by frame."""

from __future__ import annotations

import torch
from torch import Tensor


def plan(frames: int, patches: int, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Sources and starts of fresh patches: frame 0 whole, one frame with none, others random."""
    g = torch.Generator().manual_seed(seed)
    fresh = torch.rand(frames, patches, generator=g) < torch.rand(frames, 1, generator=g)
    fresh[0] = True
    if frames > 2:
        fresh[1] = False
    row = fresh.flatten().long().cumsum(0).view(fresh.shape) - 1
    source = torch.where(fresh, row, -1).cummax(0).values
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), fresh.sum(1).cumsum(0)])
    return source.to(device), starts.to(device)


def by_frame(
    query: Tensor, key: Tensor, value: Tensor, source: Tensor, starts: Tensor, scale: float
) -> Tensor:
    """One frame after the other, in double precision."""
    outputs = []
    groups = query.shape[1] // key.shape[1]
    key, value = (x[0].double().repeat_interleave(groups, 0) for x in (key, value))
    for shown, a, b in zip(source, starts[:-1], starts[1:], strict=True):
        logits = query[0, :, a:b].double() @ key[:, shown].mT * scale
        outputs.append((logits.softmax(-1) @ value[:, shown]).transpose(0, 1))
    return torch.cat(outputs)[None]
