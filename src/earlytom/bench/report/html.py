"""``leaderboard.html``: one static page that needs nothing but itself (made with Jinja2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from earlytom.bench.report import text
from earlytom.bench.report.runs import FULL
from earlytom.bench.report.style import styles
from earlytom.bench.report.summary import Cell, Estimate, Summary
from earlytom.templates import load_template

TITLE = "EarlyTom leaderboard: visual token compression"
TEMPLATE = "leaderboard.html.j2"
WHISKER = 120  # width of the drawing in the accuracy column, in its own units

Number = Callable[[Cell], float | None]
# key, title, which order comes first, what it means, value of a cell, how it is written
COLUMNS: tuple[tuple[str, str, str, str, Number, Callable[[float | None], str]], ...] = (
    ("accuracy", "accuracy %", "descending", "right answers among four candidates",
     lambda c: text.value_of(c.accuracy), text.percent),
    ("open", "open %", "descending", "right answers among all words of the vocabulary",
     lambda c: c.open_accuracy, text.percent),
    ("retention", "retention %", "ascending", "visual tokens entering the language model",
     lambda c: c.retention, text.percent),
    ("llm", "LLM retention %", "ascending", "visual tokens, mean over the language model's layers",
     lambda c: c.llm_retention, text.percent),
    ("encoder", "encoder %", "ascending", "vision encoder FLOPs relative to the full model",
     lambda c: c.encoder_compute, text.percent),
    ("flops", "FLOPs %", "ascending", "all FLOPs of a question relative to the full model",
     lambda c: c.flops_relative, text.percent),
    ("time", "time %", "ascending", "measured time relative to the full model",
     lambda c: c.seconds_relative, text.percent),
    ("ms", "ms", "ascending", "median time to encode a clip and answer a question",
     lambda c: c.seconds, text.milliseconds),
)  # fmt: skip


def render_html(summary: Summary) -> str:
    """Return the page.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    missing = "the leaderboard needs Jinja2: pip install 'earlytom[report]', or use --no-html"
    template = load_template(__package__, TEMPLATE, missing)
    return str(template.render(**_context(summary))) + "\n"


def _context(summary: Summary) -> dict[str, Any]:
    notes = text.Footnotes()
    rows = [_row(summary, cell, notes) for cell in summary.cells]
    relative = any(c.relative for c in summary.cells)
    columns = [
        {"key": "name", "title": "method", "first": "ascending", "help": "compression method"},
        {"key": "split", "title": "split", "first": "ascending", "help": "set of questions"},
        {"key": "ratio", "title": "ratio", "first": "descending", "help": "retention asked for"},
        {
            "key": "score",
            "title": "% of full" if relative else "accuracy %",
            "first": "descending",
            "help": "accuracy relative to the full model, 95 % interval",
        },
        {"key": "rank", "title": "rank", "first": "ascending", "help": "rank of its ratio"},
        {
            "key": "difference",
            "title": "difference",
            "first": "descending",
            "help": f"points of accuracy to {summary.reference}",
        },
    ]
    columns += [
        {"key": key, "title": title, "first": first, "help": said}
        for key, title, first, said, _, _ in COLUMNS
    ]
    lead = (
        f"{len(summary.labels)} methods, compared with {summary.reference}. "
        f"{text.caption(summary)}."
    )
    return {
        "title": TITLE,
        "lead": lead,
        "scope": text.SCOPE,
        "warnings": summary.warnings,
        "splits": [s.name for s in summary.splits],
        "ratios": [(f"{r:g}", text.ratio_text(r)) for r in summary.ratios],
        "ratio": f"{summary.type_ratio:g}" if summary.type_ratio else "",
        "columns": columns,
        "rows": rows,
        "reference": summary.reference,
        "caption": "Accuracy and cost by method, split and retention ratio",
        "legend": text.LEGEND,
        "marks": text.chosen_by(summary).replace("`", ""),
        "notes": notes.texts,
        "facts": [
            ("Models", text.model_lines(summary)),
            ("Questions", text.split_lines(summary)),
            ("Environments", text.environment_lines(summary)),
            ("Written", [f"by earlytom {summary.earlytom} on {summary.created}"]),
        ],
    }


def _row(summary: Summary, cell: Cell, notes: text.Footnotes) -> dict[str, Any]:
    done = cell.status == "done"
    looks = styles(summary.highlighted, summary.reference)
    colour = looks.get(cell.label, (None, None))[0]
    estimate = cell.relative or cell.accuracy
    full = cell.label == FULL
    versus = cell.versus
    sign = {text.BETTER: "better", text.WORSE: "worse"}.get(text.mark(cell), "")
    cells: list[dict[str, Any]] = [
        {"key": "name", "value": cell.label, "text": cell.label},
        {"key": "split", "value": cell.split, "text": cell.split},
        {"key": "ratio", "value": f"{cell.ratio:g}", "text": text.ratio_text(cell.ratio)},
        {
            "key": "score",
            "value": _value(cell.score),
            "text": text.percent(cell.score) if done else "unreachable",
            "interval": _ends(estimate) if done and not (full and cell.relative) else "",
            "whisker": _whisker(summary, estimate) if not full else None,
        },
        {"key": "rank", "value": cell.rank or "", "text": cell.rank or text.DASH},
        {
            "key": "difference",
            "value": _value(versus.difference.value if versus else None),
            "text": f"{100 * versus.difference.value:+.1f}" if versus else text.DASH,
            "interval": text.points(versus.difference).partition(" ")[2] if versus else "",
            "mark": sign,
        },
    ]
    for key, _, _, _, number, write in COLUMNS:
        value = number(cell)
        cells.append({"key": key, "value": _value(value), "text": write(value)})
    for entry in cells:
        entry.setdefault("interval", "")
        entry.setdefault("mark", "")
        entry.setdefault("whisker", None)
    return {
        "split": cell.split,
        "ratio": f"{cell.ratio:g}",
        "css": "full" if full else "reference" if cell.label == summary.reference else "",
        "chip": "ink" if cell.label == summary.reference else colour,
        "notes": notes.of(cell),
        "cells": cells,
    }


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _ends(estimate: Estimate | None) -> str:
    return text.interval(estimate).partition(" ")[2]


def _whisker(summary: Summary, estimate: Estimate | None) -> list[str] | None:
    """Low end, value and high end on a scale that all rows of the page share."""
    if estimate is None:
        return None
    known = [e for c in summary.cells if (e := c.relative or c.accuracy) is not None]
    low, high = min(e.low for e in known), max(e.high for e in known)
    scale = WHISKER / ((high - low) or 1.0)
    return [f"{(v - low) * scale:.1f}" for v in (estimate.low, estimate.value, estimate.high)]
