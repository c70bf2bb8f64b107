"""The command line and the environment of a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from earlytom.checks import check_choice, check_count
from earlytom.errors import ConfigError, EarlyTomError, MissingExtraError, UnsupportedModelError
from earlytom.integrations.vllm.families import architecture_for
from earlytom.integrations.vllm.settings import CONFIG_KEY, OFF
from earlytom.integrations.vllm.versions import installed, unsupported
from earlytom.method import Method
from earlytom.network import http_url

SHIPPED_NAME, SHIPPED_FRAMES, FRAMES = "earlytom-tiny", 16, 32
DTYPES = ("auto", "float32", "bfloat16", "float16")
_MODULE = "vllm.entrypoints.openai.api_server"
_OURS = {  # vLLM's options that this command sets: two values would contradict each other
    "--model": "MODEL",
    "--host": "--host",
    "--port": "--port",
    "--dtype": "--dtype",
    "--hf-overrides": "--method, --retention-ratio and --settings",
    "--media-io-kwargs": "--frames",
    "--served-model-name": "--name",
}
_CPU = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # pinning fails where some cores are not ours
_CPU_CACHE, _CPU_CACHE_SHIPPED = 4 << 30, 256 << 20  # bytes of KV cache


@dataclass(frozen=True)
class Launch:
    """What to start.

    Attributes:
        command: program and arguments.
        environment: variables for the child process only, unless they are set already.
        host: interface to listen on.
        port: to listen on.
        name: of the model in requests.
        method: name of the method, ``none`` if compression is off.
        retention_ratio: of requests that name none; 1 if compression is off.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    host: str
    port: int
    name: str
    method: str
    retention_ratio: float

    @property
    def url(self) -> str:
        """Address that a client on this machine can use."""
        return http_url(self.host, self.port)


def prepare(
    model: str | None = None,
    method: Method | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    frames: int | None = None,
    dtype: str | None = None,
    cpu: bool = False,
    request_ratio: bool = True,
    extra: Sequence[str] = (),
) -> Launch:
    """Return how to serve ``model`` with ``method``; nothing but its config is read.

    Args:
        model: checkpoint folder or Hub id; None: the shipped one.
        method: of requests that do not choose a ratio; None: off.
        host: interface to listen on.
        port: to listen on.
        name: of the model in requests; None: ``earlytom-tiny`` or ``model``.
        frames: to sample from every video; None: 16 for the shipped model, else 32.
        dtype: of the weights; None: ``float32`` on the CPU, else as the checkpoint says.
        cpu: whether vLLM runs on the CPU.
        request_ratio: whether requests may choose a ratio.
        extra: further arguments for vLLM.

    Raises:
        ConfigError: an argument out of range, or a method that cannot be served.
        UnsupportedModelError: not a family that can be served.
        EarlyTomError: the checkpoint's config cannot be read.
    """
    if frames is not None:
        check_count("frames", frames)
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    _check_extra(extra)
    shipped = model is None
    if model is None:
        from earlytom.pipeline.loading import shipped_model

        model = shipped_model()
    if name is None:
        name = SHIPPED_NAME if shipped else model
    config = _read_config(model)
    settings: dict[str, Any] = {"method": OFF} if method is None else method.to_dict()
    setattr(config, CONFIG_KEY, settings)
    overrides = {"architectures": [architecture_for(config)], CONFIG_KEY: settings}
    if frames is None:
        frames = SHIPPED_FRAMES if shipped else FRAMES
    command = [sys.executable, "-m", _MODULE, "--model", model, "--served-model-name", name]
    command += ["--host", host, "--port", str(port)]
    command += ["--dtype", dtype or ("float32" if cpu else "auto")]
    command += ["--hf-overrides", json.dumps(overrides)]
    command += ["--media-io-kwargs", json.dumps({"video": {"num_frames": frames}})]
    command += ["--enable-prompt-tokens-details"]
    if request_ratio:
        command += ["--trust-request-mm-kwargs"]
    environment = {"VLLM_NO_USAGE_STATS": "1"}
    if Path(model).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"  # everything is there
    if cpu:
        cache = _CPU_CACHE_SHIPPED if shipped else _CPU_CACHE
        # without it vLLM wants most of the memory; blocks of other sizes are refused; no compiler
        command += ["--kv-cache-memory-bytes", str(cache), "--block-size", "32", "--enforce-eager"]
        environment |= _CPU
    ratio = 1.0 if method is None else method.retention_ratio
    label = OFF if method is None else method.name
    return Launch((*command, *extra), environment, host, port, name, label, ratio)


def check_vllm() -> None:
    """Raise unless vLLM is there, in a version that the plugin was made for.

    Raises:
        MissingExtraError: vLLM is not installed; the message names the extra.
        UnsupportedModelError: another version.
    """
    if find_spec("vllm") is None:
        raise MissingExtraError("serving needs vLLM: pip install 'earlytom[vllm]'")
    reason = unsupported(_version())
    if reason is not None:
        raise UnsupportedModelError(reason)


def on_cpu() -> bool:
    """Whether vLLM here runs on the CPU: it was built for it, or there is nothing else."""
    package, version = _distribution()
    return "cpu" in package + version or not torch.accelerator.is_available()


def _version() -> str:
    """Return the version of vLLM, if possible without importing it, which takes seconds."""
    return _distribution()[1] or installed()


def _distribution() -> tuple[str, str]:
    """Return name and version of the package that brings vLLM, both empty without one."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return "", ""


def _check_extra(extra: Sequence[str]) -> None:
    for argument in extra:
        if argument.startswith(("--ssl", "--uds")):
            raise ConfigError(f"{argument} is not possible: speak TLS in a proxy in front of it")
        option = argument.split("=")[0].split(".")[0].replace("_", "-")
        if option in _OURS:
            raise ConfigError(f"{option} must not follow --; use {_OURS[option]} in front of it")


def _read_config(model: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError, KeyError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise EarlyTomError(f"cannot read the config of {model}: {reason}") from e
