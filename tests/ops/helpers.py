"""Synthetic frames and a meter of the largest tensor that an operation creates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from earlytom.ops.plan import MergePlan
from earlytom.ops.similarity import FrameBand


def video(n: int, patches: int = 6, dim: int = 8, seed: int = 0, drift: float = 0.4) -> Tensor:
    """Random walk with uneven steps and an occasional cut."""
    g = torch.Generator().manual_seed(seed)
    steps = torch.randn(n, patches, dim, generator=g) * drift
    steps *= torch.rand(n, 1, 1, generator=g) * 2
    cuts = torch.rand(n, generator=g) < 0.15
    steps[cuts] += torch.randn(int(cuts.sum()), patches, dim, generator=g) * 2
    return steps.cumsum(0) + torch.randn(1, patches, dim, generator=g)


def band_of(adjacent: list[float]) -> FrameBand:
    """A band that knows neighbours only."""
    return FrameBand(len(adjacent) + 1, (tuple(adjacent),) if adjacent else ())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.float(), b.float(), dim=-1).mean())


def assert_stochastic(plan: MergePlan) -> None:
    """Rows are convex, members ascending, every frame is represented exactly once and in order."""
    for row in plan.weights:
        assert abs(sum(row) - 1) < 1e-12
        assert min(row) >= 0
    flat = [m for row in plan.members for m in row]
    assert flat == list(range(plan.n_input))


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            # views (of inputs) cost nothing
            if isinstance(t, Tensor) and not func.is_view:
                self.bytes = max(self.bytes, t.numel() * t.element_size())
        return out
