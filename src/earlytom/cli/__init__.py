"""The ``earlytom`` command. Heavy parts are imported inside the commands that need them."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from earlytom._version import __version__
from earlytom.cli import tiny
from earlytom.cli.app_command import serve_app
from earlytom.cli.ask import ask
from earlytom.cli.bench import bench
from earlytom.cli.demo import demo
from earlytom.cli.eval import evaluate
from earlytom.cli.inspect import inspect
from earlytom.cli.methods import methods
from earlytom.cli.report import report
from earlytom.cli.serve import serve
from earlytom.cli.tune import tune
from earlytom.cli.watch import watch
from earlytom.errors import EarlyTomError

__all__ = ["app", "main"]

app = typer.Typer(
    name="earlytom",
    help="Fast video understanding: fewer visual tokens inside and after the vision encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("app")(serve_app)
app.command()(ask)
app.command()(bench)
app.command()(demo)
app.command("eval")(evaluate)
app.command()(inspect)
app.command()(methods)
app.command()(report)
app.command()(serve)
app.command()(tune)
app.command()(watch)
app.add_typer(tiny.app, name="tiny")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"earlytom {__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Fast video understanding: fewer visual tokens inside and after the vision encoder."""


def main() -> None:
    """Entry point: errors of this package become one line and exit code 1."""
    try:
        app()
    except EarlyTomError as e:
        typer.echo(f"error: {e}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
