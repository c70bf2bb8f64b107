"""Finding the files of a checkpoint: a local folder or a Hugging Face Hub id."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from earlytom.errors import EarlyTomError

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?$")


def check_source(source: str | os.PathLike[str]) -> str:
    """Return ``source`` as text if it is a checkpoint folder or looks like a Hub id.

    Raises:
        EarlyTomError: no such folder, not a checkpoint folder, or not a possible id.
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise EarlyTomError(f"not a model folder (it has no config.json): {name}")
        return str(path)
    if path.exists():
        raise EarlyTomError(f"a model is a folder or a Hub id, but this is a file: {name}")
    if not isinstance(source, str) or not _HUB_ID.match(name):
        raise EarlyTomError(f"no such model folder: {name}")
    return name


def load_error(source: str, error: BaseException) -> EarlyTomError:
    """Return a one-line error for what transformers raised while loading ``source``."""
    if Path(source).is_dir():
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return EarlyTomError(f"cannot load the model in {source}: {lines[0]}")
    return EarlyTomError(
        f"cannot load model {source!r}: no folder of that name here, and it cannot be fetched "
        f"from the Hugging Face Hub ({type(error).__name__})"
    )


def read_json(source: str, name: str) -> dict[str, Any] | None:
    """Return JSON file ``name`` of the checkpoint, or None if it has no such file.

    Raises:
        EarlyTomError: the checkpoint cannot be reached, or the file is not a JSON object.
    """
    text = read_text(source, name)
    if text is None:
        return None
    try:
        data = json.loads(text)
    except json.JSONDecodeError as e:
        raise EarlyTomError(f"{name} of {source} is not valid JSON: {e}") from e
    if not isinstance(data, dict):
        raise EarlyTomError(f"{name} of {source} is not a JSON object")
    return data


def read_text(source: str, name: str) -> str | None:
    """Return text file ``name`` of the checkpoint, or None if it has no such file.

    Raises:
        EarlyTomError: the checkpoint cannot be reached or the file cannot be read.
    """
    folder = Path(source)
    try:
        if folder.is_dir():
            path = folder / name
            return path.read_text(encoding="utf-8") if path.is_file() else None
        from transformers.utils.hub import cached_file

        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found).read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise load_error(source, e) from e
