"""Pictures of a report as PNG and SVG (needs matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from earlytom.bench.report import text
from earlytom.bench.report.style import GREY, GREY_TEXT, darker, styles
from earlytom.bench.report.summary import Cell, Summary
from earlytom.errors import MissingExtraError
from earlytom.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TICKS = (1, 2, 3, 5, 7, *range(10, 100, 5), 100, 120, 150, 200, 300)
COLUMNS = 4
SETTINGS: dict[str, Any] = {
    "savefig.dpi": 160,
    "font.size": 10,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "svg.hashsalt": "earlytom",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Quantity:
    """What a picture shows along x, as a share of the full model's."""

    file: str
    title: str
    label: str
    value: Callable[[Cell], float | None]


QUANTITIES = (
    Quantity(
        "accuracy-retention",
        "Accuracy against visual tokens",
        "visual tokens in the language model, % of all, mean over its layers (as achieved)",
        lambda c: c.retention if c.llm_retention is None else c.llm_retention,
    ),
    Quantity(
        "accuracy-flops",
        "Accuracy against computation",
        "FLOPs of one question, % of the full model's (closed form)",
        lambda c: c.flops_relative,
    ),
    Quantity(
        "accuracy-time",
        "Accuracy against measured time",
        "median time to encode a clip and answer a question, % of the full model's",
        lambda c: c.seconds_relative,
    ),
)


def draw_plots(summary: Summary, folder: Path) -> list[Path]:
    """Write every picture for which there is data, each as PNG and SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    written: list[Path] = []
    with drawing():
        for quantity in QUANTITIES:
            if any(_points(summary, label, quantity) for label in summary.labels):
                written += save_figure(_trade_off(summary, quantity), folder, quantity.file)
        if summary.types and any(c.by_type for c in summary.cells):
            written += save_figure(_multiples(summary), folder, "question-types")
    return written


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in our style inside.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as e:
        raise MissingExtraError(
            "pictures need matplotlib: pip install 'earlytom[report]', or use --no-plots"
        ) from e
    with matplotlib.rc_context(SETTINGS):
        yield


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``figure`` as PNG and SVG and return the paths."""
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    atomic_write(paths[0], partial(figure.savefig, metadata={"Software": "earlytom"}))
    atomic_write(paths[1], partial(figure.savefig, metadata={"Date": None}))
    return paths


def _points(summary: Summary, label: str, quantity: Quantity) -> list[tuple[float, Cell]]:
    """(x in per cent, cell) of a method on the main split, smallest ratio first."""
    found = ((quantity.value(c), c) for c in summary.series(summary.main_split, label))
    return [(100 * x, c) for x, c in found if x is not None and x > 0 and c.score is not None]


def _trade_off(summary: Summary, quantity: Quantity) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 5.4))
    axes = figure.add_axes((0.085, 0.2, 0.9, 0.7))
    axes.set_xscale("log")
    looks = styles(summary.highlighted, summary.reference)
    everything: list[tuple[float, float]] = []
    ends: list[tuple[float, float, str, str]] = []
    for label in sorted(summary.labels, key=lambda x: x in looks):
        points = _points(summary, label, quantity)
        xs, ys = [x for x, _ in points], [100 * _score(c) for _, c in points]
        everything += zip(xs, ys, strict=True)
        if not points:
            continue
        if label not in looks:
            axes.plot(xs, ys, color=GREY, lw=1, marker="o", ms=2.5, zorder=1)
            continue
        colour, marker = looks[label]
        axes.plot(xs, ys, color=colour, lw=1.8, marker=marker, ms=6, zorder=3, mec="white", mew=0.6)
        for x, (_, cell) in zip(xs, points, strict=True):
            estimate = cell.relative or cell.accuracy
            if estimate is not None:
                span = (100 * estimate.low, 100 * estimate.high)
                axes.plot((x, x), span, color=colour, lw=1, alpha=0.45, zorder=2)
                everything += [(x, end) for end in span]
        ends.append((xs[0], ys[0], label, colour))
    _frame(summary, axes, everything)
    axes.set_xlabel(quantity.label)
    axes.set_title(f"{quantity.title}, split {summary.main_split}", pad=14)
    _label_ends(axes, ends)
    greys = len([x for x in summary.labels if x not in looks])
    others = f" Grey: {greys} other methods (see the tables)." if greys else ""
    _foot(figure, f"Vertical lines: 95 % intervals over clips.{others}", text.caption(summary))
    return figure


def _frame(summary: Summary, axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Limits with room for names on the left, ticks, and the line of the full model."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(xs), max(*xs, 100.0) if max(xs) > 75 else max(xs)
    width = math.log(max(high / low, 1.5))
    axes.set_xlim(low / math.exp(0.36 * width), high * math.exp(0.04 * width))
    ticks = [t for t in TICKS if 0.97 * low <= t <= 1.03 * high]
    while len(ticks) > 8:
        ticks = ticks[::-1][::2][::-1]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    full = summary.full(summary.main_split)
    relative = full is not None and full.accuracy is not None
    span = max(ys) - min(ys) or 1.0
    top = max(100.0, max(ys)) if relative else max(ys)
    axes.set_ylim(min(ys) - 0.06 * span, top + 0.05 * span)
    axes.set_ylabel("accuracy, % of the full model's" if relative else "accuracy, %")
    axes.grid(axis="y", color="#ECECEC", lw=0.8, zorder=0)
    axes.set_axisbelow(True)
    if full is not None and full.accuracy is not None:
        axes.axhline(100, color=GREY_TEXT, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"full model ({text.percent(full.accuracy.value)} % right)",
            (0.995, 100),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="right",
            color=GREY_TEXT,
            fontsize=9,
        )


def _label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name every line at the left, spread so that no two names touch, with a thin leader."""
    low, high = axes.get_ylim()
    gap = 0.052 * (high - low)
    order = sorted(ends, key=lambda e: e[1])
    heights = spread([e[1] for e in order], gap, low + 0.5 * gap, high - gap)
    for (x, y, label, colour), height in zip(order, heights, strict=True):
        axes.annotate(
            _short(label, 21),
            (x, y),
            xytext=(0.235, height),
            textcoords=("axes fraction", "data"),
            ha="right",
            va="center",
            color=darker(colour),
            fontsize=10,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
            arrowprops={
                "arrowstyle": "-",
                "relpos": (1, 0.5),
                "color": colour,
                "lw": 0.7,
                "alpha": 0.6,
                "shrinkA": 2,
                "shrinkB": 5,
            },
        )


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending ``values`` as little as needed to lie ``gap`` apart within ``[low, high]``."""
    groups: list[list[float]] = []  # [sum of (value - place in group), members]
    for value in values:
        groups.append([value, 1.0])
        while len(groups) > 1:
            (a, n), (b, m) = groups[-2:]
            if a / n + gap * n <= b / m:
                break
            groups[-2:] = [[a + b - m * n * gap, n + m]]
    placed: list[float] = []
    for total, members in groups:
        start = total / members
        placed += [start + gap * i for i in range(int(members))]
    for i in range(len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap if i else low)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], placed[i + 1] - gap if i + 1 < len(placed) else high)
    return placed


def _multiples(summary: Summary) -> Figure:
    """One small picture per question type, same axes everywhere."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = -(-len(summary.types) // COLUMNS)
    looks = styles(summary.highlighted, summary.reference)
    figure = Figure(figsize=(10.5, 1.5 + 2.1 * rows))
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    full = summary.full(summary.main_split)
    for panel, kind in zip(panels, summary.types, strict=False):
        panel.set_xscale("log")
        for label in sorted(summary.labels, key=lambda x: x in looks):
            cells = [c for c in summary.series(summary.main_split, label) if kind in c.by_type]
            xs = [100 * c.ratio for c in cells]
            ys = [100 * c.by_type[kind] for c in cells]
            if label in looks:
                colour, marker = looks[label]
                panel.plot(xs, ys, color=colour, marker=marker, ms=4, lw=1.4, mec="white", mew=0.4)
            else:
                panel.plot(xs, ys, color=GREY, lw=0.7, zorder=1)
        if full and kind in full.by_type:
            panel.axhline(100 * full.by_type[kind], color=GREY_TEXT, lw=1, ls=(0, (4, 3)))
        panel.set_title(kind, fontsize=11, pad=3)
        panel.grid(axis="y", color="#ECECEC", lw=0.8)
        panel.set_axisbelow(True)
        panel.set_ylim(0, 104)
        panel.set_yticks((0, 25, 50, 75, 100))
        panel.set_xticks(
            [100 * r for r in summary.ratios], [f"{100 * r:g}" for r in summary.ratios]
        )
        panel.minorticks_off()
        panel.tick_params(labelbottom=True, labelsize=9)
    for panel in panels[len(summary.types) :]:
        panel.remove()
    handles = [
        Line2D([], [], color=c, marker=m, ms=6, lw=1.6, mec="white", label=_short(x, 18))
        for x, (c, m) in looks.items()
    ]
    handles.append(Line2D([], [], color=GREY_TEXT, lw=1, ls=(0, (4, 3)), label="full model"))
    if len(summary.labels) > len(looks):
        handles.append(Line2D([], [], color=GREY, lw=1, label="other methods"))
    height = figure.get_size_inches()[1]
    figure.suptitle(
        f"Accuracy (%) by question type, split {summary.main_split}",
        x=0.05, y=1 - 0.1 / height, ha="left", va="top", fontsize=12,
    )  # fmt: skip
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.04, 1 - 0.35 / height), ncols=5,
        frameon=False, fontsize=9.5, handlelength=1.8, columnspacing=1.4,
    )  # fmt: skip
    figure.subplots_adjust(
        left=0.05, right=0.985, top=1 - 1.2 / height, bottom=0.82 / height, hspace=0.42, wspace=0.1
    )
    _foot(figure, "x: retention ratio asked for, % (logarithmic).", text.caption(summary))
    return figure


def _foot(figure: Figure, *lines: str) -> None:
    height = figure.get_size_inches()[1]
    for i, line in enumerate(reversed(lines)):
        figure.text(0.02, (0.1 + 0.19 * i) / height, line, fontsize=8, color=GREY_TEXT)


def _short(label: str, length: int) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


def _score(cell: Cell) -> float:
    return cell.score or 0.0
