"""Deepstack: features of middle encoder layers that early decoder layers add to visual columns.

Columns that are gone take none of it, neither at the entrance of the language model nor behind a
point of stage III.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.hf.prefill import Region
from earlytom.override import Override

METHOD = "_deepstack_process"


def gather_deepstack(
    visual: Tensor, features: list[Tensor], index: Tensor, mask: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Keep the features of the columns that are left.

    Args:
        visual: ``[batch, L]`` bool, columns that take a feature.
        features: per layer ``[True in visual, dim]``.
        index: ``[batch, n]`` columns left.
        mask: ``[batch, n]`` bool, real ones among them.

    Returns:
        The same for the ``n`` columns.
    """
    index, mask = index.to(visual.device), mask.to(visual.device)
    rank = (visual.flatten().cumsum(0) - 1).view(visual.shape)
    left = visual.gather(1, index) & mask
    rows = rank.gather(1, index)[left]  # as many as the model is about to add: it counts them too
    return left, [x.index_select(0, rows.to(x.device)) for x in features]


def cut_inputs(kwargs: dict[str, Any], index: Tensor, mask: Tensor) -> None:
    """Cut the deepstack arguments of a language model, if there are any, in place."""
    visual = kwargs.get("visual_pos_masks")
    features = kwargs.get("deepstack_visual_embeds")
    if visual is None or features is None:
        return
    visual = visual[..., 0] if visual.dim() == 3 else visual
    left, features = gather_deepstack(visual, list(features), index, mask)
    kwargs["visual_pos_masks"], kwargs["deepstack_visual_embeds"] = left, features


class DeepstackRegion:
    """Stands in for the step of a language model that adds features, while stage III is on.

    Args:
        module: the language model.
        region: returns the columns present behind the points passed, None outside of a prefill.
    """

    def __init__(self, module: nn.Module, region: Callable[[], Region | None]) -> None:
        self._region = region
        self._original: Any = getattr(module, METHOD)
        functools.update_wrapper(self, self._original, updated=())
        self.remove = Override(module, METHOD, self).remove

    def __call__(self, hidden: Tensor, visual: Tensor, features: Tensor) -> Any:
        """Add ``features [True in visual, dim]`` to the columns that are left."""
        region = self._region()
        if region is not None and region.rows is not None:
            visual, found = gather_deepstack(visual, [features], region.rows, region.mask)
            features = found[0]
        return self._original(hidden, visual, features)


def placed(features: Tensor, slots: Tensor, n_input: int) -> Tensor:
    """Write ``[frames left, tokens, dim]`` into ``[n_input * tokens, dim]``, 0 where none is."""
    blank = torch.zeros(n_input, *features.shape[1:], dtype=features.dtype, device=features.device)
    return blank.index_copy_(0, slots, features).flatten(0, 1)
