"""``earlytom methods``: what can be used as ``--method``."""

from __future__ import annotations

import dataclasses
from typing import Any

from earlytom.cli import _options as opt
from earlytom.cli._output import console, emit, guarded


@guarded
def methods(as_json: opt.AsJson = False) -> None:
    """List the compression methods and their settings with default values."""
    from rich.table import Table

    from earlytom.methods import list_methods, method_class

    found: list[dict[str, Any]] = []
    for name in list_methods():
        cls = method_class(name)
        summary = (cls.__doc__ or "").strip().splitlines()[0]
        settings = {f.name: _default(f) for f in dataclasses.fields(cls)}
        found.append({"name": name, "summary": summary, "settings": settings})
    if as_json:
        return emit(found)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for entry in found:
        table.add_row(entry["name"], entry["summary"])
        shown = ", ".join(f"{k}={v!r}" for k, v in entry["settings"].items())
        table.add_row("", shown, style="dim", end_section=True)
    return console().print(table)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None
