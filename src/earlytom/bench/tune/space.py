"""What a search may choose: values of settings, in branches whose settings belong together."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from earlytom.errors import ConfigError
from earlytom.stages import EMBEDDINGS

Settings = dict[str, Any]
_BELOW = (0.0, 0.01, 0.02, 0.04, 0.08)  # encoder budgets tried, below the limit
_BUDGETS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # without a limit
_TRIES = 200  # draws per wanted candidate before the space counts as used up
_MOST_MERGES = 3


@dataclass(frozen=True)
class Branch:
    """Settings that are searched together: the product of their values.

    Attributes:
        values: setting -> values to choose from; a single value is fixed.
    """

    values: Mapping[str, tuple[Any, ...]]

    @property
    def size(self) -> int:
        """Number of combinations."""
        return math.prod(len(v) for v in self.values.values())

    def combinations(self) -> Iterator[Settings]:
        """Return all of them, in order."""
        for chosen in itertools.product(*self.values.values()):
            yield dict(zip(self.values, chosen, strict=True))

    def draw(self, rng: np.random.Generator) -> Settings:
        """Choose every setting evenly and independently."""
        return {k: v[int(rng.integers(len(v)))] for k, v in self.values.items()}


@dataclass(frozen=True)
class Space:
    """Branches; a draw takes each of them equally often."""

    branches: tuple[Branch, ...]

    def refined(self, grid: Mapping[str, tuple[Any, ...]]) -> Space:
        """Replace or add values in all branches.

        A branch is left out where it fixes a setting to a value that ``grid`` does not have. If
        none is left, the grid alone is one branch.
        """
        kept = []
        for branch in self.branches:
            values = dict(branch.values)
            for name, wanted in grid.items():
                fixed = values.get(name, ())
                if len(fixed) != 1:
                    values[name] = wanted
                elif fixed[0] not in wanted:
                    break
            else:
                kept.append(Branch(values))
        return Space(tuple(kept) or (Branch(dict(grid)),))

    def draw(
        self, count: int, seed: int, fits: Callable[[Settings], bool] = lambda settings: True
    ) -> list[Settings]:
        """Return up to ``count`` different combinations that fit, in random order.

        Args:
            count: how many; all of a smaller space.
            seed: of the random numbers.
            fits: whether a combination can be used at all.

        Raises:
            ConfigError: none fits.
        """
        rng = np.random.default_rng(seed)
        found: dict[str, Settings] = {}
        if sum(b.size for b in self.branches) <= count * len(self.branches):
            every = [s for b in self.branches for s in b.combinations()]
            drawn: Iterator[Settings] = (every[i] for i in rng.permutation(len(every)))
        else:
            n = len(self.branches)
            drawn = (self.branches[i % n].draw(rng) for i in range(count * _TRIES))
        refused: set[str] = set()
        for settings in drawn:
            key = json.dumps(settings, sort_keys=True, default=list)
            if key in found or key in refused:
                continue
            if fits(settings):
                found[key] = settings
            else:
                refused.add(key)
            if len(found) == count:
                break
        if not found:
            raise ConfigError(
                "no combination of these settings fits the method, the model and the limits"
            )
        return list(found.values())


def built_in_space(method: str, n_layers: int, max_encoder: float | None = None) -> Space | None:
    """Return the space of ``earlytom`` or ``afterimage``; None for every other method.

    Args:
        method: registered name.
        n_layers: usable layers of the encoder.
        max_encoder: limit on the share of encoder operations; encoder budgets are tried at and a
            little below it.
    """
    if method == "earlytom":
        return _earlytom(n_layers, max_encoder)
    if method == "afterimage":
        values = {
            "layer": tuple(range(max(1, n_layers // 3))),
            "encoder_budget": _budgets(max_encoder),
            "even_share": (0.0, 0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 1.0),
            "time_weight": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0),
            "ridge": (None, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        }
        return Space((Branch(values),))
    return None


def _earlytom(n_layers: int, max_encoder: float | None) -> Space:
    layers = _layer_sets(n_layers, max_encoder)
    by_attention = ("decoupled", "topk", "window", "global")
    decided: dict[str, tuple[Any, ...]] = {
        "merge_layers": layers,
        "tau": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "ema": (0.5, 0.7, 0.9, 1.0),
        "selection": (*by_attention, "diversity", "uniform"),
    }
    budget = {
        "policy": ("budget",),
        "merge_layers": layers,
        "encoder_budget": _budgets(max_encoder),
        "frame_similarity": ("mean", "worst"),
        "fuse": ("first", "average"),
        "selection": ("diversity", "uniform", *by_attention),
        "merge_rest": (False, True),
    }
    official = {"policy": ("official",), **decided, "max_window": (4, 6, 8, 12, 16)}
    paper = {
        "policy": ("paper",),
        **decided,
        "max_window": (None, 4, 8, 16),
        "tau_merge": (None, 0.3, 0.5, 0.7, 0.8, 0.9),
    }
    return Space((Branch(budget), Branch(official), Branch(paper)))


def _layer_sets(n_layers: int, max_encoder: float | None) -> tuple[tuple[int, ...], ...]:
    """One to three merge layers, -1 among them; the first early enough for the limit."""
    step = max(1, n_layers // 12)
    layers = (EMBEDDINGS, *range(0, max(1, n_layers - 1), step))
    first = n_layers if max_encoder is None else max_encoder * n_layers
    sets = (s for k in range(1, _MOST_MERGES + 1) for s in itertools.combinations(layers, k))
    return tuple(s for s in sets if s[0] + 1 < first) or ((0,),)


def _budgets(max_encoder: float | None) -> tuple[float, ...]:
    if max_encoder is None:
        return _BUDGETS
    tried = (round(max_encoder - b, 4) for b in _BELOW)
    return tuple(b for b in tried if b > 0)


def parse_grid(text: str) -> tuple[str, tuple[Any, ...]]:
    """Read ``name=value,value``: JSON values, ``none``, or bare words; lists become tuples.

    Raises:
        ConfigError: no name, or no value.
    """
    name, equals, rest = text.partition("=")
    name = name.strip()
    parts = [part.strip() for part in _split(rest)]
    if not equals or not name.isidentifier() or not all(parts):
        raise ConfigError(f"expected name=value,value (lists as [1,4],[2,6]), got {text!r}")
    values = tuple(_value(part) for part in parts)
    if len({json.dumps(v) for v in values}) != len(values):
        raise ConfigError(f"a value occurs twice in {text!r}")
    return name, values


def _split(text: str) -> list[str]:
    """Split at commas that are not inside brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "[") - (sign == "]")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def _value(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return tuple(value) if isinstance(value, list) else value


def check_names(known: Sequence[str], grid: Mapping[str, Any], method: str) -> None:
    """Raise ConfigError unless the method has all settings named, and they may be searched."""
    for name in grid:
        if name == "retention_ratio":
            raise ConfigError("retention_ratio is not searched; give the ratios with --ratio")
        if name not in known:
            raise ConfigError(f"{method} has no setting {name!r}; it has: {', '.join(known)}")
