"""Which models are timed against each other: the plain one, and every method at every ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from earlytom.bench.contenders import FULL, Contender, Entry, contenders, entry
from earlytom.errors import ConfigError
from earlytom.methods import EarlyTom


@dataclass(frozen=True)
class Schedule:
    """Frames left after each of some encoder layers, in place of decisions from the video.

    Attributes:
        frames: e.g. ``(24, 18, 14)``.
        layers: layers after which they are left; None for EarlyTom's published ones.
    """

    frames: tuple[int, ...]
    layers: tuple[int, ...] | None = None

    def at(self, depth: int) -> tuple[int, ...]:
        """Return the layers in an encoder of ``depth`` layers.

        Raises:
            ConfigError: layers and frames do not fit together.
        """
        layers = self.layers
        if layers is None:
            layers = EarlyTom(policy="official").merge_points(depth)[-len(self.frames) :]
        if len(layers) != len(self.frames):
            raise ConfigError(
                f"a merge schedule of {len(self.frames)} numbers needs as many merge layers, got "
                f"{len(layers)}; name them with --merge-layers"
            )
        return layers


def cases(
    methods: Sequence[str],
    ratios: Sequence[float],
    model: Any,
    adapter: Any,
    schedule: Schedule | None = None,
) -> list[Entry]:
    """Return what to time, the full model first.

    Args:
        methods: labels or registered names (a name stands for the method's defaults); ``none`` is
            the full model, which is always there.
        ratios: retention ratios, in (0, 1].
        model: the model, without a method on it.
        adapter: of the model.
        schedule: frames left in the encoder for ``earlytom``.

    Raises:
        ConfigError: unknown method, a ratio that a method cannot reach, or a schedule that fits
            none of the methods.
    """
    chosen: list[Entry] = [Entry(FULL, 1.0, None)]
    used = False
    for name in dict.fromkeys(m for m in methods if m not in ("none", FULL)):
        row = contenders([name])[0]
        if schedule is not None and row.label == "earlytom-budget":
            row, used = _scheduled(schedule, adapter.usable_layers), True
        for ratio in ratios:
            made = entry(row, ratio, "auto", model, len(adapter.decoder_layers))
            if made.error is not None:
                raise ConfigError(f"{row.label} at {ratio:g}: {made.error}")
            chosen.append(made)
    if schedule is not None and not used:
        raise ConfigError("a merge schedule is for earlytom, which is not among the methods")
    return chosen


def _scheduled(schedule: Schedule, depth: int) -> Contender:
    fixed = {"frames": schedule.frames, "merge_layers": schedule.at(depth)}
    return Contender("earlytom-budget", "earlytom", lambda _: fixed)
