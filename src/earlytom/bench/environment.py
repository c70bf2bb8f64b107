"""What measured numbers depend on."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers

from earlytom._version import __version__


def environment(
    threads: int, dtype: str, attention: str, device: torch.device | None = None
) -> dict[str, Any]:
    """Return what measured numbers depend on: machine, versions, settings."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "earlytom": __version__,
        "commit": _commit(),
        "cpu": _cpu(),
        **_device(device),
        "threads": threads,
        "dtype": dtype,
        "attention": attention,
    }


def _device(device: torch.device | None) -> dict[str, Any]:
    if device is None or device.type != "cuda":
        return {"device": "cpu"}
    return {
        "device": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "triton": _version_of("triton"),
        "flash_attn": _version_of("flash_attn"),
    }


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the checkout that this file is tracked in, None without one."""
    here = Path(__file__).resolve()
    git = ["git", "-C", str(here.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], check=True,
                       capture_output=True, timeout=10)  # fmt: skip
        done = subprocess.run([*git, "rev-parse", "--short", "HEAD"], check=True,
                              capture_output=True, text=True, timeout=10)  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
