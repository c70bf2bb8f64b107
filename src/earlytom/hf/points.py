"""Points inside the language model: what the engine can serve."""

from __future__ import annotations

import itertools

from earlytom.checks import check_choice
from earlytom.errors import ConfigError
from earlytom.stages import InnerPoint

SIGNALS = ("none", "previous", "own")


def source_layer(point: InnerPoint) -> int:
    """Layer whose attention a point looks at."""
    return point.layer - (point.attention == "previous")


def check_points(points: tuple[InnerPoint, ...], depth: int, renumber: bool) -> None:
    """Raise ConfigError unless the points can be served by a model of ``depth`` layers."""
    for p in points:
        check_choice("attention of an InnerPoint", p.attention, SIGNALS)
        if p.after_attention and p.attention == "previous":
            raise ConfigError(f'{p}: behind the attention of a layer, it must be "own" or "none"')
        # layer 0 sizes all masks: in front of it only the embeddings can be looked at
        least = 0 if p.after_attention or (p.attention == "none" and not renumber) else 1
        if not least <= p.layer < depth:
            raise ConfigError(
                f"inner layer {p.layer} is out of range; this language model allows "
                f"{least}..{depth - 1}"
            )
    for a, b in itertools.pairwise(points):
        if (a.layer, a.after_attention) >= (b.layer, b.after_attention):
            raise ConfigError(f"inner points must be ascending, got {a} in front of {b}")
        if b.attention == "previous" and a.after_attention and a.layer == source_layer(b):
            raise ConfigError(f"{b} cannot look at an attention in front of {a}")
