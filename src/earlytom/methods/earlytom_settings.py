"""Validation of EarlyTom's settings, and merge points scaled to the depth of an encoder."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from earlytom.checks import check_ascending, check_choice, check_count, check_flag, check_ratio
from earlytom.errors import ConfigError
from earlytom.ops.tensors import exact
from earlytom.stages import EMBEDDINGS

if TYPE_CHECKING:
    from earlytom.methods.earlytom import EarlyTom

POLICIES = ("budget", "official", "paper")
BY_ATTENTION = ("decoupled", "topk", "window", "global")
SELECTIONS = ("auto", *BY_ATTENTION, "uniform", "diversity", "none")
DEFAULT_ENCODER_BUDGET = 0.6

_PUBLISHED = tuple(Fraction(n, 26) for n in (11, 22, 24))  # after layers 10, 21, 23 of 26
_OURS = (Fraction(2, 12), Fraction(5, 12))  # after layers 1 and 4 of 12
_NOMINAL_LAYERS = 12


def check(m: EarlyTom) -> None:
    """Raise ConfigError unless every setting is in range and used by the policy."""
    check_choice("policy", m.policy, POLICIES)
    check_choice("selection", m.selection, SELECTIONS)
    check_choice("frame_similarity", m.frame_similarity, ("worst", "mean"))
    fuses = ("auto", "first" if m.policy == "budget" else "weighted", "average")
    check_choice(f"fuse of policy {m.policy}", m.fuse, fuses)
    if m.merge_layers is not None:
        check_ascending("merge_layers", m.merge_layers, EMBEDDINGS)
    check_ratio("worst_share", m.worst_share)
    check_ratio("inner_ratio", m.inner_ratio)
    check_ratio("ema", m.ema, open_low=False)
    check_ratio("tau", m.tau, low=-1.0, open_low=False)
    if m.tau_merge is not None:
        check_ratio("tau_merge", m.tau_merge, low=-1.0, open_low=False)
    if m.encoder_budget is not None:
        check_ratio("encoder_budget", m.encoder_budget)
    for name in ("max_window", "inner_merge_layer"):
        if getattr(m, name) is not None:
            check_count(name, getattr(m, name))
    check_flag("merge_rest", m.merge_rest)
    _check_used(m)
    _check_frames(m)


def _check_used(m: EarlyTom) -> None:
    unused = {
        "frames": m.frames is not None and m.policy != "budget",
        "encoder_budget": m.encoder_budget is not None and m.policy != "budget",
        "tau_merge": m.tau_merge is not None and m.policy != "paper",
        "merge_rest": m.merge_rest and m.policy == "official",
    }
    for name, is_unused in unused.items():
        if is_unused:
            raise ConfigError(f"{name} has no meaning under policy {m.policy!r}; leave it out")
    if m.merge_rest and m.selection == "none":
        raise ConfigError('merge_rest needs a selection; selection="none" leaves no rest')


def _check_frames(m: EarlyTom) -> None:
    if m.merge_layers == () and m.encoder_budget is not None:
        raise ConfigError("encoder_budget needs merge layers, but merge_layers=() merges nowhere")
    if m.frames is None:
        return
    if m.encoder_budget is not None:
        raise ConfigError("give either frames or encoder_budget, not both")
    if not isinstance(m.frames, tuple) or not all(
        isinstance(f, int) and not isinstance(f, bool) and f >= 1 for f in m.frames
    ):
        raise ConfigError(f"frames must be a tuple of integers >= 1, got {m.frames!r}")
    if any(b > a for a, b in zip(m.frames, m.frames[1:], strict=False)):
        raise ConfigError(f"frames must not increase from one merge point to the next: {m.frames}")
    points = len(_OURS) if m.merge_layers is None else len(m.merge_layers)
    if len(m.frames) != points:
        raise ConfigError(
            f"frames needs one entry per merge point ({points}), got {m.frames}; "
            "give as many merge_layers"
        )


def merge_points(m: EarlyTom, n_layers: int) -> tuple[int, ...]:
    """Return the layers after which frames are merged in an encoder of ``n_layers``.

    Raises:
        ConfigError: no such layer, or ``frames`` or ``encoder_budget`` does not fit the depth.
    """
    points = _scaled(m, n_layers) if m.merge_layers is None else m.merge_layers
    if points and points[-1] >= n_layers:
        raise ConfigError(
            f"merge_layers {points} is out of range: the encoder has {n_layers} usable layers "
            f"(allowed: {EMBEDDINGS} for the patch embeddings, 0..{n_layers - 1})"
        )
    if m.policy != "budget" or not points:
        return points
    if m.frames is not None:
        if len(m.frames) != len(points):
            raise ConfigError(
                f"frames={m.frames} has {len(m.frames)} entries, but an encoder of {n_layers} "
                f"layers has {len(points)} automatic merge points; give merge_layers"
            )
        return points
    share, spent = exact(budget_share(m)), Fraction(points[0] + 1, n_layers)
    if spent >= share < 1:
        raise ConfigError(
            f"encoder_budget {float(share):g} cannot be met: {points[0] + 1} of {n_layers} layers "
            f"({float(spent):.3g}) run before the first merge; allowed: above {float(spent):.3g}, "
            "or an earlier first merge layer"
        )
    return points


def nominal_points(m: EarlyTom, n_layers: int | None) -> tuple[int, tuple[int, ...]]:
    """Return depth and merge points for a schedule.

    Automatic points lie at fixed fractions of the depth, so the schedule of a 12-layer encoder
    stands in for a depth that is not known.

    Raises:
        ConfigError: explicit ``merge_layers``, whose cost depends on the unknown depth.
    """
    if n_layers is None:
        if m.merge_layers:
            raise ConfigError(
                "encoder_budget with merge_layers needs the number of encoder layers, which is not "
                "known here; give frames instead, or leave merge_layers out"
            )
        n_layers = _NOMINAL_LAYERS
    return n_layers, merge_points(m, n_layers)


def budget_share(m: EarlyTom) -> float:
    """Return the share of encoder layer-frames to spend."""
    return DEFAULT_ENCODER_BUDGET if m.encoder_budget is None else m.encoder_budget


def _scaled(m: EarlyTom, n_layers: int) -> tuple[int, ...]:
    """Scale the policy's merge points to the depth, rounding half up; none behind the last."""
    depths = _OURS if m.policy == "budget" else _PUBLISHED
    ran = {max(1, math.floor(f * n_layers + Fraction(1, 2))) for f in depths}
    return tuple(sorted(r - 1 for r in ran if r < n_layers))
