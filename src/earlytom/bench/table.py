"""Tables for Markdown pages."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, the first column left and the others right aligned."""
    rule = "|" + "|".join(["---"] + ["---:"] * (len(header) - 1)) + "|"
    first, *lines = ("| " + " | ".join(row) + " |" for row in (header, *rows))
    return [first, rule, *lines]
