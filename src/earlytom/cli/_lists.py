"""Option values that are lists, separated by commas."""

from __future__ import annotations

from earlytom.errors import ConfigError


def names(text: str) -> tuple[str, ...]:
    """Return different names in their order.

    Raises:
        ConfigError: there is none.
    """
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise ConfigError("an empty list of names was given")
    return found


def numbers(text: str) -> tuple[float, ...]:
    """Return different ratios in their order.

    Raises:
        ConfigError: something else than numbers.
    """
    try:
        return tuple(float(part) for part in names(text))
    except ValueError as e:
        raise ConfigError(f"ratios must be numbers separated by commas, got {text!r}") from e


def whole_numbers(text: str) -> tuple[int, ...]:
    """Return all numbers in their order.

    Raises:
        ConfigError: something else than whole numbers.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as e:
        raise ConfigError(f"need whole numbers separated by commas, got {text!r}") from e
