"""Runs stage III of a method over a whole prompt, as the engine does, with identity layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from earlytom.method import Method
from earlytom.stages import InnerState


@dataclass
class Run:
    """What is left behind the last layer, and how many tokens every layer saw."""

    hidden: Tensor
    column: Tensor
    patch: Tensor
    seen: list[int] = field(default_factory=list)

    def average(self, tokens: int) -> float:
        """Average over layers of the share of the ``tokens`` that was present."""
        return sum(self.seen) / len(self.seen) / tokens


def prompt(
    frames: int, size: int, dim: int = 8, still: float = 0.5, seed: int = 0, newline: bool = False
) -> tuple[Tensor, Tensor]:
    """Return ``[n, dim]`` states and ``[n]`` patches: 3 text tokens, a video, 5 text tokens."""
    g = torch.Generator().manual_seed(seed)
    scene = torch.randn(1, size, dim, generator=g)
    speed = torch.where(torch.rand(size, 1, generator=g) < still, 0.02, 1.5)
    video = scene + torch.randn(frames, size, dim, generator=g) * speed
    text = torch.randn(8 + newline, dim, generator=g)
    patch = torch.arange(size).repeat(frames)
    hidden = torch.cat([text[:3], video.flatten(0, 1), text[3:]])
    inside = [patch, torch.tensor([-2])] if newline else [patch]
    return hidden, torch.cat([torch.full((3,), -1), *inside, torch.full((5,), -1)])


def frames_of(patch: Tensor) -> Tensor:
    """Frame slots of a sequence that holds whole frames."""
    return torch.where(patch >= 0, (patch == 0).long().cumsum(0) - 1, -1)


def rows_of(x: Tensor, queries: Tensor | None) -> Tensor:
    """Causal attention rows ``[2, q, n]`` of a layer without weights."""
    n = len(x)
    queries = torch.tensor([n - 1]) if queries is None else queries
    heads = torch.stack([x, x.roll(1, -1)]).float()
    logits = heads[:, queries] @ heads.mT / x.shape[1] ** 0.5
    return logits.masked_fill(torch.arange(n) > queries[:, None], -torch.inf).softmax(-1)


def run_inside(method: Method, hidden: Tensor, patch: Tensor, n_layers: int = 28) -> Run:
    """Run all points of ``method`` on one sequence; checks what every merge must keep to."""
    points = method.inner_points(n_layers)
    run = Run(hidden, torch.arange(len(hidden)), patch)
    frame, tokens, memory = frames_of(patch), int((patch >= 0).sum()), dict[str, Any]()

    def state(point: int, attention: Tensor | None = None) -> InnerState:
        angle = run.column[:, None] / 100 ** (torch.arange(4).repeat(2) / 4)
        return InnerState(
            point=point,
            layer=points[point].layer if point >= 0 else 0,
            n_layers=n_layers,
            hidden=run.hidden,
            visual=run.patch != -1,
            attention=attention,
            frame=frame[run.column],
            patch=run.patch,
            entered=tokens,
            uncompressed=tokens,
            memory=memory,
            rotary=(angle.cos(), angle.sin()),
        )

    def apply(point: int) -> None:
        attention = None
        if points[point].attention != "none":
            attention = rows_of(run.hidden, method.inner_queries(state(point)))
        before = state(point, attention)
        done = method.merge_inner(before)
        if done is None:
            return
        text = torch.arange(len(run.patch))[run.patch == -1]
        assert torch.isin(text, done.index).all(), "text must stay"
        assert (done.index.diff() > 0).all()
        new = run.hidden[done.index] if done.hidden is None else done.hidden
        assert new.dtype == hidden.dtype
        assert new.shape == (len(done.index), hidden.shape[1])
        is_text = run.patch[done.index] == -1
        assert torch.equal(new[is_text], run.hidden[done.index][is_text])
        run.hidden, run.column = new, run.column[done.index]
        run.patch = run.patch[done.index]

    if points:
        method.inner_start(state(-1))
    for layer in range(n_layers):
        for late in (False, True):
            for i, point in enumerate(points):
                if (point.layer, point.after_attention) == (layer, late):
                    apply(i)
            if not late:
                run.seen.append(int((run.patch >= 0).sum()))
    return run
