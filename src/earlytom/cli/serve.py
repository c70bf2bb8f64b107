"""``earlytom serve``: a server that speaks OpenAI's protocol."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from earlytom.cli import _options as opt
from earlytom.cli._output import emit, guarded, progress_console
from earlytom.errors import ConfigError, EarlyTomError

if TYPE_CHECKING:
    from earlytom.serve import Launch

_STDERR = 2


@guarded
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Checkpoint folder or Hub id. Default: the shipped small model.",
            show_default=False,
        ),
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- VLLM ARGUMENTS]", help="Passed on to vLLM.", show_default=False
        ),
    ] = None,
    method: opt.MethodName = "earlytom",
    retention_ratio: opt.Ratio = None,
    policy: opt.Policy = None,
    positions: opt.Positions = None,
    settings: Annotated[
        str | None,
        typer.Option("--settings", help='More settings of the method: JSON, {"weight_power": 0}.'),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Interface to listen on; 0.0.0.0 for all of them.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port; 0 takes a free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option("--name", help="What requests call the model.")
    ] = None,
    frames: opt.Frames = None,
    dtype: opt.Dtype = None,
    request_ratio: Annotated[
        bool,
        typer.Option(
            help="Whether requests may choose a ratio (and, as vLLM allows only both, frames)."
        ),
    ] = True,
    log_file: Annotated[
        Path | None,
        typer.Option("--log-file", help="Where vLLM's log goes. Default: standard error."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command instead of running it.")
    ] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Serve a model with vLLM, compressing videos inside its encoder.

    Needs the extra `vllm`. Arguments behind -- go to vLLM. Ends with Ctrl-C.
    """
    progress = progress_console()
    model, passed = _split(model, extra or [])
    with progress.status("checking"):
        from earlytom.integrations.vllm.settings import method_of
        from earlytom.network import listen
        from earlytom.serve import Server, check_vllm, on_cpu, prepare

        given = {
            "retention_ratio": retention_ratio,
            "policy": policy,
            "positions": positions,
            **_parsed(settings),
        }
        wanted = method_of({"method": method, **{k: v for k, v in given.items() if v is not None}})
        if port == 0 or not dry_run:
            with listen(host, port) as taken:  # refuse a bad address before anything is loaded
                port = taken.getsockname()[1]
        launch = prepare(
            model,
            wanted,
            host=host,
            port=port,
            name=name,
            frames=frames,
            dtype=dtype,
            cpu=on_cpu(),
            request_ratio=request_ratio,
            extra=passed,
        )
        if not dry_run:
            check_vllm()
    if dry_run:
        if as_json:
            return emit({"command": list(launch.command), "environment": launch.environment})
        variables = [f"{k}={shlex.quote(v)}" for k, v in launch.environment.items()]
        return typer.echo(" ".join([*variables, shlex.join(launch.command)]))
    log = _STDERR if log_file is None else _opened(log_file)
    with Server(launch, log) as server, server.forwarding():
        last = 0.0

        def tell(waited: float) -> None:
            nonlocal last
            if waited - last >= 10:
                last = waited
                typer.echo(f"waiting for vLLM ({waited:.0f} s)", err=True)

        typer.echo(f"starting vLLM for {launch.name}", err=True)
        ready = server.wait_ready(tell)
        if ready:
            _ready(launch, server.pid, as_json)
        code = server.wait()
    if not server.stopping:  # vLLM's own exit code is 0 even if its engine has died
        when = "by itself" if ready else "before it was ready"
        where = "above" if log_file is None else f"in {log_file}"
        typer.echo(f"error: vLLM ended {when}; its reason is {where}", err=True)
        code = code or 1
    raise typer.Exit(code)


def _split(model: str | None, extra: list[str]) -> tuple[str | None, list[str]]:
    """Tell a model from the first argument behind ``--``."""
    if model is not None and model.startswith("-"):
        return None, [model, *extra]
    return model, extra


def _parsed(settings: str | None) -> dict[str, Any]:
    if settings is None:
        return {}
    try:
        found = json.loads(settings)
    except json.JSONDecodeError as e:
        raise ConfigError(f"--settings must be JSON: {e}") from e
    taken = {"method", "retention_ratio", "policy", "positions"}
    if not isinstance(found, dict) or taken & found.keys():
        raise ConfigError(f"--settings must be a JSON object without {', '.join(sorted(taken))}")
    return found


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as e:
        raise EarlyTomError(f"cannot write {path}: {e.strerror}") from e


def _ready(launch: Launch, pid: int, as_json: bool) -> None:
    from earlytom.serve import curl_example, python_example

    if as_json:  # on one line: whoever reads it must not wait for the end
        ready = {
            "url": launch.url,
            "model": launch.name,
            "method": launch.method,
            "retention_ratio": launch.retention_ratio,
            "pid": pid,
        }
        return typer.echo(json.dumps(ready))
    ratio = None if launch.method == "none" else launch.retention_ratio
    typer.echo(f"\n{launch.url} serves {launch.name} (Ctrl-C ends it)\n")
    typer.echo("# in a shell\n" + curl_example(launch.url, launch.name, ratio) + "\n")
    return typer.echo("# in Python\n" + python_example(launch.url, launch.name, ratio))
