"""Checks of settings: one line says what was wrong and what is allowed."""

from __future__ import annotations

import itertools
import math

from earlytom.errors import ConfigError


def check_ratio(name: str, value: object, *, low: float = 0.0, open_low: bool = True) -> None:
    """Raise ConfigError unless ``value`` is a number in (low, 1] (or [low, 1])."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not (low < value or (not open_low and value == low)) or value > 1:  # type: ignore[operator]
        bracket = "(" if open_low else "["
        raise ConfigError(f"{name} must be a number in {bracket}{low:g}, 1], got {value!r}")


def check_count(name: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is an integer >= 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def check_ascending(name: str, values: object, minimum: int) -> None:
    """Raise ConfigError unless ``values`` is a tuple of strictly ascending ints >= minimum."""
    if not isinstance(values, tuple) or not all(
        isinstance(v, int) and not isinstance(v, bool) and v >= minimum for v in values
    ):
        raise ConfigError(f"{name} must be a tuple of integers >= {minimum}, got {values!r}")
    if any(b <= a for a, b in itertools.pairwise(values)):
        raise ConfigError(f"{name} must be strictly ascending without repeats, got {values!r}")


def check_flag(name: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
