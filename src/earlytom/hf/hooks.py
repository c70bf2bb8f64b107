"""Hidden states among the arguments of a layer, which callers pass by place or by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor

NAME = "hidden_states"


def hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return what a pre-hook of a layer was given."""
    found: Tensor = args[0] if args else kwargs[NAME]
    return found


def with_hidden_states(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with other hidden states, as a pre-hook returns them."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, NAME: hidden})
