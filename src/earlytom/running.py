"""What stages I and II do to one video, whatever runs its encoder: transformers hooks or vLLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from earlytom.method import Method
from earlytom.ops.plan import MergePlan
from earlytom.ops.tensors import ceil_div
from earlytom.stages import TokenSelection, VideoFeatures, VideoState
from earlytom.trace import note

T = TypeVar("T")


class Agree(Protocol):
    """Runs a decision, or fetches what the process that runs it has decided."""

    def __call__(self, decide: Callable[[], T]) -> T:
        """Return what ``decide`` gives."""


def at_once(decide: Callable[[], T]) -> T:
    """Decide here and now; an engine of several processes has one of them decide for all."""
    return decide()


def merge_video(
    method: Method,
    hidden: Tensor,
    state: VideoState,
    point: int,
    layer: int,
    classes: int = 0,
    agree: Agree = at_once,
    overwrite: bool = False,
) -> Tensor:
    """Stage I of one video at one merge point.

    Args:
        method: decides.
        hidden: ``[frames present, tokens, dim]`` behind ``layer``.
        state: of the video; brought up to date.
        point: number of the merge point.
        layer: encoder layer in front of it.
        classes: tokens of every frame that methods do not see, in front of the patches.
        agree: who decides.
        overwrite: nobody reads ``hidden`` afterwards.

    Returns:
        What is left ``[frames, tokens, dim]``.
    """
    plan = agree(lambda: _decide(method, hidden.detach()[:, classes:], state, point))
    if plan is not None:
        hidden = plan.apply(hidden, overwrite)
        state.apply(plan, layer)
    note("merged", plan=plan)
    agree(lambda: method.finish_frames(hidden.detach()[:, classes:], state, point))
    return hidden


def _decide(method: Method, seen: Tensor, state: VideoState, point: int) -> MergePlan | None:
    """Decide a merge; an exact token budget needs frames that hold as many tokens."""
    size = state.tokens_per_frame
    plan = method.merge_frames(seen, state, point, size)
    if plan is None or not method.exact_budget:
        return plan
    return plan.at_least(ceil_div(method.token_budget(state.n_input, size), size))


def select_video(
    method: Method, present: Tensor, state: VideoState, pool: Callable[[Tensor], Tensor]
) -> tuple[TokenSelection | None, Tensor | None]:
    """Stage II of one video.

    Args:
        method: decides.
        present: ``[frames present, tokens, dim]`` behind projector and pooling.
        state: of the video; its ``grid`` must be known.
        pool: pools signals ``[frames, patches, dim]`` as the model pools features.

    Returns:
        What stays, None for everything; and the received attention ``[frames, tokens]`` that the
        method saw, or None.
    """
    assert state.grid is not None

    def pooled(signal: Tensor | None) -> Tensor | None:
        return None if signal is None else pool(signal.unsqueeze(-1)).squeeze(-1)

    received, probe = pooled(state.received), pooled(state.probe)
    keys = None if state.keys is None else pool(state.keys)
    video = VideoFeatures(present, received, state.grid, state, keys, state.vectors, probe)
    return method.select_tokens(video), received


def frame_slots(state: VideoState, positions: str) -> tuple[int, ...]:
    """Return the frame slot of every frame left: its own place, or evenly spaced (``respace``)."""
    n, t = state.n_frames, state.n_input
    if positions != "respace" or n == t:
        return state.first
    if n == 1:
        return (0,)
    return tuple((2 * k * (t - 1) + n - 1) // (2 * (n - 1)) for k in range(n))


def token_cells(index: Tensor, slots: Tensor, size: int) -> Tensor:
    """Return the cell among all input frames of tokens ``index`` of the frames present.

    Args:
        index: ``[k]`` int64 into ``frames present * size``.
        slots: ``[frames present]`` int64.
        size: tokens of a frame.
    """
    index = index.to(slots.device)
    return slots[torch.div(index, size, rounding_mode="floor")] * size + index % size
