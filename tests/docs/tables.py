"""Renew tables of ``docs/`` and ``README.md``: ``python -m tests.docs.tables``.

They are made from code and results.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from earlytom import catalog
from earlytom.bench.report.text import percent, ratio_text
from earlytom.bench.table import markdown_table
from earlytom.models import support
from tests.docs import serving

ROOT = Path(__file__).parents[2]
DOCS, RESULTS = ROOT / "docs", ROOT / "results"
SPEED = "tiny_16f_b1_cpu_float32_sdpa"
# not as their authors published them
OURS = ("afterimage", "afterimage-tokens", "afterimage-unwhitened", "earlytom-budget")
# not in the README: variants and methods that change no conclusion there
BEHIND = (
    "afterimage-unwhitened",
    "holitom-inner",
    "prunevid-inner",
    "prumerge",
    "prumerge-plus",
    "sparsevlm-v2",
    "mustdrop",
    "ficoco",
    "ipcv",
    "resize",
)
LOSSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
Cell = dict[str, Any]


def accuracy() -> str:
    """Return the accuracy at every ratio with half its interval, and what it costs at 10 %."""
    summary, cells = _results()
    rows = []
    for label in summary["labels"]:
        if label not in BEHIND:
            found = (_with_interval(cells[label, r]) for r in summary["ratios"])
            cost = cells[label, 0.1]
            costs = (percent(cost[name], 0) for name in ("encoder_compute", "flops_relative"))
            rows.append([f"`{label}`", *found, *costs])
    head = ["method", *map(ratio_text, summary["ratios"]), "encoder FLOPs", "all FLOPs"]
    return _table(head, rows)


def measured() -> str:
    """Return what was measured of every method, in the order of the results."""
    summary, cells = _results()
    ratios = [r for r in summary["ratios"] if r in (0.25, 0.1, 0.05)]
    speed = {
        (c["label"], c["retention_ratio"]): c["ttft_speedup"]["median"]
        for c in json.loads((RESULTS / "speed" / f"{SPEED}.json").read_text())["cases"]
    }
    authors = {e.name: e.citation.partition(",")[0] for e in catalog.catalog()}
    rows = []
    for label in summary["labels"]:
        name = summary["configs"][label]["method"]
        cell = cells[label, 0.1]
        quick = speed.get((label, 0.1))
        rows.append(
            [
                f"`{label}`",
                authors.get(name) or "-",
                *(_accuracy(cells[label, r]) for r in ratios),
                percent(cell["encoder_compute"], 0),
                percent(cell["flops_relative"], 0),
                "-" if quick is None else f"{quick:.2f}x",
            ]
        )
    head = ["label", "authors", *map(ratio_text, ratios)]
    return _table([*head, "encoder FLOPs", "all FLOPs", "first token"], rows)


def by_loss() -> str:
    """Return the cheapest setting for every loss of accuracy that may be tolerated."""
    _, cells = _results()
    rows = []
    for loss in LOSSES:
        good = [c for c in cells.values() if c["rank"] and c["relative"]["low"] >= 1 - loss]
        row = [f"{100 * loss:g} %"]
        row += [_choice(_cheapest(good)), _choice(_cheapest([c for c in good if _published(c)]))]
        rows.append(row)
    head = ["may lose", "cheapest", "cheapest as published"]
    return _table(head, rows, words=True)


def by_ratio() -> str:
    """Return the most accurate methods at every ratio."""
    summary, cells = _results()
    rows = []
    for ratio in summary["ratios"]:
        there = [c for c in cells.values() if c["ratio"] == ratio and c["rank"]]
        groups = (
            there,
            [c for c in there if _published(c)],
            [c for c in there if _published(c) and c["encoder_compute"] < 0.99],
        )
        best = [max(g, key=lambda c: c["relative"]["value"]) for g in groups]
        chance = cells["random", ratio]
        cells_of_row = [f"`{c['label']}` {percent(c['relative']['value'])}" for c in best]
        rows.append([ratio_text(ratio), *cells_of_row, percent(chance["relative"]["value"])])
    head = [
        "ratio",
        "best",
        "best as published",
        "best of these with a cheaper encoder",
        "`random`",
    ]
    return _table(head, rows, words=True)


def by_type() -> str:
    """Return the most accurate method for every type of question."""
    summary, cells = _results()
    ratio = summary["type_ratio"]
    ranked = [c for c in cells.values() if c["ratio"] == ratio and c["rank"]]
    full = next(c for c in cells.values() if c["label"] == "full")
    rows = []
    for kind in summary["types"]:
        best = max((c for c in ranked if _published(c)), key=lambda c: c["by_type"][kind])
        mine = next(c for c in ranked if c["label"] == "afterimage")
        rows.append(
            [
                kind,
                percent(full["by_type"][kind], 0),
                percent(mine["by_type"][kind], 0),
                f"`{best['label']}` {percent(best['by_type'][kind], 0)}",
            ]
        )
    return _table(["question", "full", "`afterimage`", "best as published"], rows)


def qwen() -> str:
    """Return what was measured on the second small model, in the order of its results."""
    summary, cells = _results("qwen2_5_vl")
    rows = []
    for label in summary["labels"]:
        found = [cells.get((label, r)) for r in summary["ratios"]]
        if any(found):
            accuracies = [_accuracy(c) if c else "-" for c in found]
            costs = [percent(c["encoder_compute"], 0) if c else "-" for c in found[-2:-1]]
            rows.append([f"`{label}`", *accuracies, *costs])
    return _table(["label", *map(ratio_text, summary["ratios"]), "encoder FLOPs"], rows)


# ---------------------------------------------------------------------- helpers
def _results(family: str = "") -> tuple[dict[str, Any], dict[tuple[str, float], Cell]]:
    summary = json.loads((RESULTS / family / "summary.json").read_text(encoding="utf-8"))
    cells = {
        (c["label"], c["ratio"]): c
        for c in summary["cells"]
        if c["split"] == summary["main_split"] and c["status"] == "done"
    }
    return summary, cells


def _published(cell: Cell) -> bool:
    return cell["label"] not in OURS


def _accuracy(cell: Cell) -> str:
    text = percent(cell["relative"]["value"])
    return text if cell["rank"] else f"({text})"


def _with_interval(cell: Cell) -> str:
    relative = cell["relative"]
    text = f"{percent(relative['value'])} ± {percent((relative['high'] - relative['low']) / 2)}"
    if not cell["rank"]:
        return f"({text})"
    return f"**{text}**" if cell["rank"] == 1 else text


def _cheapest(cells: list[Cell]) -> Cell | None:
    there = [c for c in cells if c["label"] != "full"]
    return min(there, key=lambda c: c["flops_relative"], default=None)


def _choice(cell: Cell | None) -> str:
    if cell is None:
        return "none"
    accuracy, flops = percent(cell["relative"]["value"]), percent(cell["flops_relative"], 0)
    where = f"`{cell['label']}` at {ratio_text(cell['ratio'])}"
    return f"{where}: accuracy {accuracy}, FLOPs {flops}"


def _table(header: list[str], rows: list[list[str]], words: bool = False) -> str:
    text = "\n".join(markdown_table(header, rows)) + "\n"
    return text.replace("---:", "---") if words else text


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "../README.md": {"accuracy": accuracy},
    "methods.md": {"table": catalog.markdown_table, "measured": measured},
    "models.md": {"table": support.markdown_table, "qwen": qwen},
    "choosing.md": {"by-loss": by_loss, "by-ratio": by_ratio, "by-type": by_type},
    "serving.md": {"capacity": serving.capacity, "load": serving.load},
}


def renewed(page: str, text: str) -> str:
    """Return the ``text`` of a page with current tables, which stand between comments."""
    for name, table in TABLES[page].items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, rest = text.split(start)
        text = before + start + table() + end + rest.split(end)[1]
    return text


def read(page: str) -> str:
    """Return the text of a page."""
    return (DOCS / page).read_text(encoding="utf-8")


if __name__ == "__main__":
    for page in TABLES:
        text = renewed(page, read(page))  # the page stays whole if this fails
        (DOCS / page).write_text(text, encoding="utf-8")
