"""All files of a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from earlytom.bench.report.html import render_html
from earlytom.bench.report.markdown import render_markdown
from earlytom.bench.report.plots import draw_plots
from earlytom.bench.report.summary import Summary
from earlytom.errors import ConfigError
from earlytom.files import write_text

FORMATS = ("json", "markdown", "plots", "html")
"""What :func:`write_report` can write."""


def write_report(
    summary: Summary,
    out: Path,
    formats: Sequence[str] = FORMATS,
    others: Mapping[str, Summary] = MappingProxyType({}),
) -> list[Path]:
    """Write ``summary.json``, ``report.md``, pictures and ``leaderboard.html`` to ``out``.

    Pages are made before anything is written, so a missing extra leaves no half report.

    Args:
        summary: of one model family.
        out: folder.
        formats: what to write.
        others: summaries of other families by name; each has a folder of that name, and a table
            in ``report.md``.

    Raises:
        ConfigError: unknown format.
        MissingExtraError: ``plots`` without matplotlib, ``html`` without Jinja2.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"unknown format {name!r}; choose from {', '.join(FORMATS)}")
    pages: dict[str, str] = {}
    if "html" in formats:
        pages["leaderboard.html"] = render_html(summary)
    if "json" in formats:
        pages["summary.json"] = json.dumps(summary.to_dict(), indent=1, allow_nan=False) + "\n"
    pictures = draw_plots(summary, out) if "plots" in formats else []
    if "markdown" in formats:
        names = [p.name for p in pictures if p.suffix == ".png"]
        pages["report.md"] = render_markdown(summary, names, others)
    for name, page in pages.items():
        write_text(out / name, page)
    written = sorted([*(out / name for name in pages), *pictures])
    for family, other in others.items():
        written += write_report(other, out / family, formats)
    return written
