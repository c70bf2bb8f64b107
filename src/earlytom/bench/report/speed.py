"""The speed results of a benchmark folder: tables and pictures of the time to first token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earlytom.bench.report.plots import drawing, save_figure
from earlytom.bench.report.style import GREY_TEXT, PALETTE
from earlytom.bench.report.summary import Summary
from earlytom.bench.speed import paper, tables
from earlytom.bench.table import markdown_table
from earlytom.errors import ResultError
from earlytom.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "speed.md"
Result = Mapping[str, Any]


def load_speed(folder: Path) -> dict[str, Result]:
    """Read every ``folder/speed/*.json``, by file name without its ending.

    Raises:
        ResultError: a file that is not a speed result of this version.
    """
    found: dict[str, Result] = {}
    for path in sorted((folder / "speed").glob("[!.]*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise ResultError(f"cannot read {path}: {e}") from e
        if not isinstance(data, dict) or data.get("kind") != "speed":
            raise ResultError(f"{path} is not a result of `earlytom bench`")
        if data.get("schema") != tables.SCHEMA:
            raise ResultError(f"{path} has schema {data.get('schema')!r}, this is {tables.SCHEMA}")
        found[path.stem] = data
    return found


def write_speed(
    results: Mapping[str, Result], out: Path, summary: Summary | None = None, plots: bool = True
) -> list[Path]:
    """Write ``speed.md`` and, per result, a picture of its stages.

    Args:
        results: what :func:`load_speed` returned.
        out: folder to write to.
        summary: accuracy of the same folder; adds accuracy against speed-up where the model and
            the methods are the same.
        plots: whether to draw.

    Raises:
        MissingExtraError: ``plots`` without matplotlib.
    """
    if not results:
        return []
    with drawing() if plots else nullcontext():
        return _write(results, out, summary, plots)


def _write(
    results: Mapping[str, Result], out: Path, summary: Summary | None, plots: bool
) -> list[Path]:
    written: list[Path] = []
    lines = ["# Time to first token", "", _READING, ""]
    for name, data in results.items():
        pictures: dict[str, Figure] = {}
        header, rows = paper.beside(data) if _published(data) else tables.summary(data)
        lines += [f"## {name}", "", f"{tables.headline(data)}.", ""]
        lines += [*markdown_table(header, rows), ""]
        if plots:
            pictures[f"ttft-{name}"] = _stages(data)
        points = _points(data, summary)
        if plots and len(points) > 1:
            pictures[f"accuracy-speed-{name}"] = _scatter(data, points)
        for file, figure in pictures.items():
            written += save_figure(figure, out, file)
            lines += [f"![{file.replace('-', ' ')}]({file}.png)", ""]
    write_text(out / PAGE, "\n".join(lines).rstrip() + "\n")
    return [out / PAGE, *written]


_READING = (
    "Medians of interleaved calls in one process. `speed` is the speed-up of the first token "
    "(median of paired ratios), `flops` what the operations of encoder, projector and language "
    "model promise, `extra` the work that only a compressed model does as a share of the full "
    "model's time to first token, `MiB` the most that was allocated at a time. Preprocessing is "
    "not part of these times. Random weights say nothing about accuracy."
)


def _published(data: Result) -> bool:
    return str(data["model"]["name"]) in paper.PUBLISHED


def _points(data: Result, summary: Summary | None) -> list[tuple[float, float, str]]:
    """(speed-up, accuracy in % of the full model's, name) of what was measured both ways."""
    if summary is None or not str(data["model"]["weights"]).startswith("trained"):
        return []
    found = []
    for case in data["cases"]:
        cell = summary.cell(summary.main_split, case["label"], case["retention_ratio"])
        if cell is not None and cell.score is not None:
            name = f"{case['label']} {case['retention_ratio']:.0%}"
            found.append((case["ttft_speedup"]["median"], 100 * cell.score, name))
    return found


def _stages(data: Result) -> Figure:
    """Stacked bars, one per case."""
    from matplotlib.figure import Figure

    cases = data["cases"]
    figure = Figure(figsize=(8.6, 1.5 + 0.36 * len(cases)))
    axes = figure.add_axes(
        (0.24, 0.62 / figure.get_figheight(), 0.68, 1 - 1.3 / figure.get_figheight())
    )
    left = [0.0] * len(cases)
    for (stage, label), colour in zip(tables.STAGES.items(), PALETTE, strict=False):
        widths = [max(0.0, c["seconds"][stage]["median"]) * 1000 for c in cases]
        axes.barh(range(len(cases)), widths, left=left, color=colour, label=label, height=0.72)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for i, case in enumerate(cases):
        axes.text(left[i], i, f" {case['ttft_speedup']['median']:.2f}x", va="center", fontsize=9)
    names = [f"{c['label']} {c['retention_ratio']:.0%}" for c in cases]
    axes.set_yticks(range(len(cases)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(left) * 1.1)
    axes.set_xlabel("milliseconds to the first token (medians)")
    axes.set_title(f"{data['model']['name']}, {data['frames']} frames", pad=24)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, frameon=False, fontsize=9,
        handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip
    around = data["environment"]
    foot = f"{around['device']}, {around['dtype']}, {around['attention']}, torch {around['torch']}"
    figure.text(0.02, 0.02, foot, fontsize=8, color=GREY_TEXT)
    return figure


def _scatter(data: Result, points: list[tuple[float, float, str]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 5.0))
    axes = figure.add_axes((0.09, 0.12, 0.88, 0.78))
    for x, y, name in points:
        axes.plot([x], [y], marker="o", color=PALETTE[0], ms=6)
        axes.annotate(name, (x, y), xytext=(6, 3), textcoords="offset points", fontsize=9)
    low, high = min(p[0] for p in points), max(p[0] for p in points)
    axes.set_xlim(low - 0.05 * (high - low), high + 0.3 * (high - low))  # room for names
    axes.margins(y=0.12)
    axes.set_xlabel("speed-up of the first token")
    axes.set_ylabel("accuracy, % of the full model's")
    axes.set_title(f"Accuracy against speed, {data['model']['name']}")
    axes.grid(color="#ECECEC", lw=0.8)
    axes.set_axisbelow(True)
    return figure
