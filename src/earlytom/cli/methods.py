"""``earlytom methods``: what can be used as ``--method``."""

from __future__ import annotations

from earlytom.cli import _options as opt
from earlytom.cli._output import console, emit, guarded


@guarded
def methods(as_json: opt.AsJson = False) -> None:
    """List the compression methods: where they act, by which signals, and their settings."""
    from rich.table import Table

    from earlytom.catalog import catalog

    found = catalog()
    if as_json:
        return emit([entry.to_dict() for entry in found])
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for entry in found:
        table.add_row(entry.name, entry.summary)
        signals = ", ".join(entry.signals) or "none"
        table.add_row("", f"acts: {', '.join(entry.acts)}; signals: {signals}")
        table.add_row("", f"tokens for the language model: {entry.token_count}")
        if entry.citation:
            table.add_row("", f"{entry.citation} {entry.url}".strip())
        shown = ", ".join(f"{k}={v!r}" for k, v in entry.settings.items())
        table.add_row("", shown, style="dim", end_section=True)
    return console().print(table)
