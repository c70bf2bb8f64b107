"""Options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from earlytom.method import Method

Model = Annotated[
    str | None,
    typer.Option("--model", help="Checkpoint folder or Hub id. Default: the shipped small model."),
]
MethodName = Annotated[
    str, typer.Option("--method", help="Compression method (see `earlytom methods`), or none.")
]
Ratio = Annotated[
    float | None,
    typer.Option("--retention-ratio", help="Share of visual tokens to keep, in (0, 1]."),
]
Policy = Annotated[
    str | None, typer.Option("--policy", help="Policy of the method: budget, official or paper.")
]
Positions = Annotated[
    str | None,
    typer.Option("--positions", help="Where survivors stand: auto, renumber, keep or respace."),
]
Frames = Annotated[
    int | None,
    typer.Option("--frames", help="Frames to sample. Default: 16 for the shipped model, else 32."),
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda or cuda:N.")]
Dtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16, float16 or auto (as saved).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout and nothing else.")]


def fit(method: Method, model: Any) -> Method:
    """Return the method as it suits the model, and say on stderr what was left off."""
    from earlytom.hf.api import fitted

    suited = fitted(method, model)
    if suited != method:
        typer.echo(
            f"note: this encoder cannot reuse patches, {method.name} computes all of them", err=True
        )
    return suited


def make_method(name: str, **settings: Any) -> Method | None:
    """Build the method ``name`` with the settings that were given; None for ``none``.

    Raises:
        ConfigError: unknown method or setting, or a value out of range.
    """
    if name == "none":
        return None
    from earlytom.methods import load_method

    return load_method(name, **{k: v for k, v in settings.items() if v is not None})
