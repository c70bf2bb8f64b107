"""Renew the table of ``docs/models.md``: ``python -m tests.docs_models``."""

from __future__ import annotations

from pathlib import Path

from earlytom.models.support import markdown_table

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
START, END = "<!-- table -->\n", "<!-- /table -->"


def renewed(text: str) -> str:
    """Return the page with the current table."""
    before, rest = text.split(START)
    return before + START + markdown_table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
