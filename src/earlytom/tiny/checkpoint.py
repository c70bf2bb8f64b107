"""Resumable checkpoints, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from earlytom.errors import ConfigError
from earlytom.files import atomic_write, write_text


def save_json(path: Path, data: Any) -> None:
    """Write ``data`` as indented JSON, atomically."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save a training state, atomically."""
    atomic_write(path, lambda p: torch.save(state, p))


def load_checkpoint(path: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Load a training state; ``None`` if there is none, an error if it is of another recipe."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["recipe"] != recipe:
        differing = sorted(
            k for k in {*recipe, *state["recipe"]} if recipe.get(k) != state["recipe"].get(k)
        )
        raise ConfigError(
            f"{path} was written with other settings ({', '.join(differing)}); "
            "use the same settings, another --out, or --no-resume"
        )
    return state
