"""Optimiser of the tiny model: orthogonalised momentum for matrices, Adam for the rest.

Parameters may be bfloat16; every update is made on a float32 master copy, so that small steps
are not lost to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Move every ``[..., m, n]`` matrix towards its nearest semi-orthogonal one (Newton-Schulz).

    The quintic iteration does not converge to singular values of exactly one; about 0.7..1.2 is
    what it gives, and enough for an update direction.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


@dataclass
class _Slot:
    name: str
    param: Tensor
    master: Tensor
    first: Tensor
    second: Tensor | None = None  # Adam only
    parts: int = 1  # matrices stacked in the parameter


@dataclass
class MatrixOptimizer:
    """Muon-like optimiser over named parameters.

    Two-dimensional parameters whose name contains none of ``adam_names`` get the orthogonalised
    update with ``matrix_lr``, queries, keys and values of a ``qkv`` one by one; all others get
    Adam with ``adam_lr``.  ``step(scale)`` multiplies both rates by ``scale`` (the schedule).
    """

    matrix_lr: float
    adam_lr: float
    weight_decay: float = 0.02
    adam_names: tuple[str, ...] = ("embed", "head", "newline")
    steps: int = 0
    _groups: dict[tuple[int, int, int], list[_Slot]] = field(default_factory=dict)
    _others: list[_Slot] = field(default_factory=list)

    def add(self, named: Iterable[tuple[str, Tensor]]) -> MatrixOptimizer:
        """Take over every trainable parameter of ``named``."""
        for name, param in named:
            if not param.requires_grad:
                continue
            master = param.detach().float().clone()
            slot = _Slot(name, param, master, torch.zeros_like(master))
            if param.ndim == 2 and not any(part in name for part in self.adam_names):
                slot.parts = 3 if "qkv.weight" in name else 1
                rows = param.shape[0] // slot.parts
                self._groups.setdefault((slot.parts, rows, param.shape[1]), []).append(slot)
            else:
                slot.second = torch.zeros_like(master)
                self._others.append(slot)
        return self

    def _slots(self) -> list[_Slot]:
        return [s for group in self._groups.values() for s in group] + self._others

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Apply the gradients with both learning rates times ``scale``, then clear them."""
        self.steps += 1
        momentum = min(0.95, 0.85 + 0.1 * self.steps / 300)
        for (parts, rows, columns), group in self._groups.items():
            rate = self.matrix_lr * scale
            for slot in group:
                slot.first.lerp_(_grad(slot), 1 - momentum)
            ahead = [_grad(s).lerp(s.first, momentum) for s in group]
            stacked = torch.stack(ahead).view(-1, rows, columns)
            updates = orthogonalise(stacked).view(len(group), parts * rows, columns)
            gain = max(1.0, rows / columns) ** 0.5
            for slot, update in zip(group, updates, strict=True):
                slot.master.mul_(1 - rate * self.weight_decay).add_(update, alpha=-rate * gain)
                slot.param.copy_(slot.master)
        for slot in self._others:
            if slot.param.grad is None or slot.second is None:
                continue
            grad = slot.param.grad.float()
            slot.first.lerp_(grad, 0.1)
            slot.second.lerp_(grad * grad, 0.02)
            mean = slot.first / (1 - 0.9**self.steps)
            spread = (slot.second / (1 - 0.98**self.steps)).sqrt()
            slot.master.addcdiv_(mean, spread + 1e-8, value=-self.adam_lr * scale)
            slot.param.copy_(slot.master)
        for slot in self._slots():
            slot.param.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly: step count, masters and moments."""
        slots = {s.name: (s.master, s.first, s.second) for s in self._slots()}
        return {"steps": self.steps, "slots": slots}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; parameters are set from their master copies."""
        self.steps = int(state["steps"])
        for slot in self._slots():
            master, first, second = state["slots"][slot.name]
            slot.master.copy_(master)
            slot.first.copy_(first)
            if slot.second is not None:
                slot.second.copy_(second)
            slot.param.copy_(slot.master)


def _grad(slot: _Slot) -> Tensor:
    """Gradient of a slot in float32, zeros when there is none."""
    grad = slot.param.grad
    return torch.zeros_like(slot.master) if grad is None else grad.float()


def schedule(step: int, knots: Sequence[tuple[int, float]], warmup: int) -> float:
    """Learning-rate factor: linear between (step, factor) knots, after a linear warm-up."""
    steps, factors = zip(*knots, strict=True)
    return min(1.0, (step + 1) / warmup) * float(np.interp(step, steps, factors))
