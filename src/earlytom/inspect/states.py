"""What became of every cell of every frame, from the report of a call and its trace."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from earlytom.ops.plan import MergePlan
from earlytom.report import VideoReport

# letters, as they appear in JSON and in class names of the page
DROPPED, KEPT, MERGED, REPLACED, LATER, FRESH, REUSED = "dkmslfr"
MEANING = {
    KEPT: "kept: a token of its own enters the language model",
    MERGED: "merged: averaged into a token that is kept",
    REPLACED: "replaced: a kept token of another frame takes its place, nothing of it is in there",
    LATER: "left later: enters the language model and leaves it at a later layer",
    DROPPED: "dropped: no token",
    FRESH: "computed: by the encoder, in this frame",
    REUSED: "reused: state of the same patch in an earlier frame",
}
NAMES = {k: v.partition(":")[0] for k, v in MEANING.items()}
States = tuple[str, ...]  # one string per frame, one letter per cell, row by row


def whole_plan(report: VideoReport) -> MergePlan:
    """Return one plan from the frames of the video to the frames left."""
    plan = MergePlan.identity(report.frames_in)
    for step in report.plans:
        plan = plan.then(step)
    return plan


def kept_cells(report: VideoReport) -> Tensor:
    """Mark the tokens that entered the language model: ``[frames left, tokens]`` bool, CPU."""
    shape = report.frames_out, report.tokens_per_frame
    if report.index is None:
        return torch.ones(shape, dtype=torch.bool)
    kept = torch.zeros(shape, dtype=torch.bool)
    kept.view(-1)[report.index.cpu()] = True
    return kept


def cells_inside(report: VideoReport, frame: Tensor, patch: Tensor) -> Tensor:
    """Mark the tokens that are among columns of the language model, like :func:`kept_cells`.

    Args:
        report: of a call with one video and one prompt.
        frame: ``[columns]`` int64 frame slot of every column, negative for other columns.
        patch: ``[columns]`` int64 place in the frame, negative for other columns.
    """
    frame, patch = frame.cpu(), patch.cpu()
    there = (frame >= 0) & (patch >= 0)
    row = torch.full((report.frames_in,), -1, dtype=torch.int64)
    row[torch.tensor(report.slots)] = torch.arange(report.frames_out)
    left = torch.zeros(report.frames_out, report.tokens_per_frame, dtype=torch.bool)
    left[row[frame[there]], patch[there]] = True
    return left


def token_states(report: VideoReport, inside: Tensor | None = None) -> States:
    """Return what became of the tokens of every input frame.

    Args:
        report: what the engine did.
        inside: ``[frames left, tokens]`` bool, tokens that reach the end of the language model;
            None: all that entered it.
    """
    kept, plan = kept_cells(report), whole_plan(report)
    inside = kept if inside is None else inside
    rows = [DROPPED * report.tokens_per_frame] * report.frames_in
    for j, (members, weights) in enumerate(zip(plan.members, plan.weights, strict=True)):
        for frame, weight in zip(members, weights, strict=True):
            own = KEPT if frame == report.first[j] else MERGED if weight else REPLACED
            rows[frame] = "".join(
                DROPPED if not there else own if stays else LATER
                for there, stays in zip(kept[j].tolist(), inside[j].tolist(), strict=True)
            )
    return tuple(rows)


def patch_states(owner: Tensor, keep: Tensor | None = None, later: Tensor | None = None) -> States:
    """Return what became of encoder patches that a method merged or dropped.

    Args:
        owner: ``[frames, patches]`` int64, the token of its frame that each patch went into, -1
            none.
        keep: ``[k]`` int64, tokens (``frame * tokens + token``) that stay; None: all.
        later: ``[frames, tokens]`` bool, tokens that leave inside the language model; None: none.
    """
    owner = owner.cpu()
    n = int(owner.max()) + 1 if later is None else later.shape[1]
    size = torch.zeros(len(owner), n + 1, dtype=torch.int64)
    size.scatter_add_(1, owner.where(owner >= 0, n), torch.ones_like(owner))
    alive = torch.ones(len(owner), n, dtype=torch.bool)
    if keep is not None:
        alive = torch.zeros(len(owner) * n, dtype=torch.bool)
        alive[keep.cpu()] = True
        alive = alive.view(len(owner), n)
    at = owner.clamp_min(0)
    there = (owner >= 0) & alive.gather(1, at)
    leaves = torch.zeros_like(there) if later is None else later.cpu().gather(1, at)
    single = size.gather(1, at) == 1
    return tuple(
        "".join(
            DROPPED if not t else LATER if x else KEPT if s else MERGED
            for t, x, s in zip(*row, strict=True)
        )
        for row in zip(there.tolist(), leaves.tolist(), single.tolist(), strict=True)
    )


def leaving(inside: Tensor, order: Tensor, cell: Tensor) -> Tensor:
    """Mark the tokens of merged patches that do not reach the end of the language model.

    Args:
        inside: ``[frames, cells]`` bool, see :func:`cells_inside`.
        order: ``[frames, tokens]`` int64, the token in each place.
        cell: ``[frames, tokens]`` int64, the cell that this place is.

    Returns:
        ``[frames, tokens]`` bool.
    """
    order, cell = order.cpu(), cell.cpu()
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, ~inside.gather(1, cell))


def fresh_states(fresh: Tensor) -> States:
    """Return which patches ``[frames, patches]`` bool the encoder computed."""
    return tuple("".join(FRESH if x else REUSED for x in row) for row in fresh.tolist())


def borders(owner: Tensor, grid: tuple[int, int]) -> list[list[tuple[int, int, int, int]]]:
    """Return per frame the lines ``(x, y, dx, dy)`` between patches of different tokens."""
    frames = []
    for flat in owner.cpu():
        x = flat.view(grid)
        down = (x[:, 1:] != x[:, :-1]).nonzero().tolist()
        across = (x[1:] != x[:-1]).nonzero().tolist()
        lines = [(c + 1, r, 0, 1) for r, c in down] + [(c, r + 1, 1, 0) for r, c in across]
        frames.append(lines)
    return frames


def count(states: Iterable[str]) -> dict[str, int]:
    """Return how many cells are in every state, for the states that occur."""
    text = "".join(states)
    return {NAMES[k]: text.count(k) for k in NAMES if k in text}
