"""Loading a video model with one-line errors."""

from __future__ import annotations

import os
from typing import Any

import torch

from earlytom.errors import ConfigError, EarlyTomError, UnsupportedModelError
from earlytom.models import find_adapter, supported_model_types
from earlytom.preprocess.checkpoint import check_source, load_error, read_json

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def shipped_model() -> str:
    """Return the folder of the small model that comes with the package.

    Raises:
        EarlyTomError: this installation has no weights.
    """
    from earlytom.tiny import weights_path

    path = weights_path()
    if not (path / "config.json").is_file():
        raise EarlyTomError("this installation comes without the small model; name a model")
    return str(path)


def load_model(
    source: str | os.PathLike[str],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> Any:
    """Load a video model for inference.

    Args:
        source: checkpoint folder or Hub id.
        device: e.g. ``cpu``, ``cuda``, ``cuda:1``; CUDA where available if None.
        dtype: ``float32``, ``bfloat16``, ``float16``, ``auto`` (as saved) or a torch dtype; if
            None float32 on the CPU and as saved elsewhere.
        attn_implementation: passed to transformers (``sdpa``, ``eager``, ``flash_attention_2``).

    Raises:
        EarlyTomError: no such checkpoint, or it cannot be loaded.
        UnsupportedModelError: not a video model of a known family.
        ConfigError: unknown device or dtype.
    """
    name = check_source(source)
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    config = read_json(name, "config.json")
    if config is None:
        raise EarlyTomError(f"not a model: {name} has no config.json")
    if config.get("model_type") not in supported_model_types():
        raise UnsupportedModelError(
            f"{config.get('model_type')!r} is not supported; supported model types: "
            f"{', '.join(supported_model_types())}"
        )
    from transformers import AutoModelForImageTextToText

    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    try:
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=kind, **options)
        model = model.to(where).eval()
    except Exception as e:  # hub, safetensors, JSON, missing attention packages, out of memory ...
        raise load_error(name, e) from e
    find_adapter(model)
    return model


def pick_device(device: str | torch.device | None) -> torch.device:
    """Return the device to run on.

    Raises:
        ConfigError: not a device name, or CUDA asked for and absent.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as e:
        raise ConfigError(f"unknown device {device!r}; use cpu, cuda or cuda:N") from e
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device here; use device cpu")
    return where


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | str:
    """Return the dtype to load in, ``auto`` meaning as saved.

    Raises:
        ConfigError: unknown name.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else "auto"
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(_DTYPES)}, auto; got {dtype!r}")
    return _DTYPES[dtype]
