"""Shapes of the page: paths of cells, the merge tree, curves and clouds of points (SVG)."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from earlytom.inspect.data import CellMap, Curve, MethodRun
from earlytom.inspect.signals import Scatter
from earlytom.inspect.states import FRESH, KEPT, count, kept_cells

STEP, THUMB, ROW, LABEL = 68, 60, 58, 124  # of the merge tree, in pixels
OUTLINED = (KEPT, FRESH)
WIDE, HIGH, LEFT, BOTTOM = 560, 200, 44, 30  # of a curve


def cells(states: str, grid: tuple[int, int]) -> dict[str, str]:
    """Return per state one path in units of cells: what covers them, or goes around them."""
    width = grid[1]
    paths: dict[str, str] = {}
    for y in range(grid[0]):
        x = 0
        for letter, run in groupby(states[y * width : (y + 1) * width]):
            n = len(list(run))
            paths[letter] = paths.get(letter, "") + f"M{x} {y}h{n}v1h-{n}z"
            x += n
    return {k: outline(states, grid, k) if k in OUTLINED else path for k, path in paths.items()}


def outline(states: str, grid: tuple[int, int], letter: str) -> str:
    """Return the border between cells of one state and all others (and the edge of the frame)."""
    high, wide = grid

    def inside(y: int, x: int) -> bool:
        return 0 <= y < high and 0 <= x < wide and states[y * wide + x] == letter

    path = ""
    for y in range(high + 1):
        path += _runs([inside(y - 1, x) != inside(y, x) for x in range(wide)], "M{0} {2}h{1}", y)
    for x in range(wide + 1):
        path += _runs([inside(y, x - 1) != inside(y, x) for y in range(high)], "M{2} {0}v{1}", x)
    return path


def _runs(flags: list[bool], form: str, line: int) -> str:
    path, start = "", 0
    for flag, run in groupby(flags):
        n = len(list(run))
        path += form.format(start, n, line) if flag else ""
        start += n
    return path


def frames(drawn: CellMap, seconds: tuple[float, ...]) -> list[dict[str, Any]]:
    """Return what the page needs of every frame of a map."""
    found = []
    for i, row in enumerate(drawn.states):
        said = ", ".join(f"{n} {name}" for name, n in count([row]).items())
        lines = drawn.borders[i] if drawn.borders else []
        found.append(
            {
                "number": i,
                "paths": cells(row, drawn.grid),
                "borders": "".join(
                    f"M{x} {y}" + (f"h{dx}" if dx else f"v{dy}") for x, y, dx, dy in lines
                ),
                "time": f"{seconds[i]:.2f} s",
                "said": said,
            }
        )
    return found


def tree(run: MethodRun, n: int) -> dict[str, Any]:
    """Return the merge tree: nodes, edges and segments below the row of frames."""

    def x(frame: int) -> float:
        return LABEL + STEP * frame + STEP / 2

    rows, top = [], THUMB + 26
    for step in run.steps:
        below = top + ROW
        edges = []
        for members, weights in zip(step.members, step.weights, strict=True):
            end = x(step.before[members[0]])
            for m, w in zip(members, weights, strict=True):
                start = x(step.before[m])
                edges.append(
                    {
                        "path": f"M{start:g} {top + 4}C{start:g} {top + 30} {end:g} {top + 26} "
                        f"{end:g} {below - 6}",
                        "width": f"{1.5 + 3.5 * w:.2f}",
                        "css": "none" if w == 0 else "",
                        "said": f"frame {step.before[m] + 1} to {step.before[members[0]] + 1}: "
                        f"weight {w:.2f}",
                        "tip": f"{w:.2f}" if len(members) > 1 and 0 < w < 1 else "",
                    }
                )
        used = {m for members in step.members for m in members}
        before, after = len(step.before), len(step.members)
        name = f"after layer {step.layer}" if step.layer >= 0 else "embeddings"
        rows.append(
            {
                "title": name,
                "change": f"{before} → {after}",
                "y": below,
                "edges": edges,
                "lost": [x(f) for i, f in enumerate(step.before) if i not in used],
                "nodes": [x(step.before[m[0]]) for m in step.members],
                "segments": [
                    (x(step.before[a]) - STEP * 0.42, x(step.before[b]) + STEP * 0.42, top - 3)
                    for a, b in step.groups
                ],
            }
        )
        top = below + 12
    kept = dict(zip(run.report.first, kept_cells(run.report).sum(1).tolist(), strict=True))
    most = run.report.tokens_per_frame
    bars = [
        {"x": x(i) - 20, "height": 44 * kept.get(i, 0) / most, "n": kept.get(i, 0), "frame": i}
        for i in range(n)
    ]
    floor = top + (70 if rows else 44)
    return {
        "rows": rows,
        "bars": bars,
        "floor": floor,
        "width": LABEL + STEP * n,
        "height": floor + 22,
        "x": [x(i) for i in range(n)],
    }


def curve(drawn: Curve) -> dict[str, Any]:
    """Return polylines, threshold, ticks and cuts of a curve."""
    values = [v for v in (*drawn.similarity, *(drawn.average or ())) if v is not None]
    if drawn.threshold is not None:
        values.append(drawn.threshold)
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = 0.08 * (high - low) or 0.05
    low, high = low - pad, high + pad
    steps = max(1, len(drawn.frames) - 1)

    def x(i: float) -> float:
        return round(LEFT + (WIDE - LEFT - 12) * i / steps, 1)

    def y(v: float) -> float:
        return round(10 + (HIGH - BOTTOM - 10) * (high - v) / (high - low), 1)

    def lines(series: tuple[float | None, ...]) -> list[list[tuple[float, float]]]:
        """Points, interrupted where nothing was compared."""
        found = ((v is not None, (x(i), y(v or 0.0))) for i, v in enumerate(series, 1))
        return [[p for _, p in run] for there, run in groupby(found, lambda f: f[0]) if there]

    every = -(-len(drawn.frames) // 16)
    return {
        "title": drawn.title,
        "similarity": lines(drawn.similarity),
        "average": lines(drawn.average or ()),
        "threshold": None if drawn.threshold is None else (y(drawn.threshold), drawn.threshold),
        "ticks": [(y(v), f"{v:.2f}") for v in (low + pad, (low + high) / 2, high - pad)],
        "frames": [(x(i), f + 1) for i, f in enumerate(drawn.frames) if i % every == 0],
        "cuts": [x(a - 0.5) for a, _ in drawn.groups[1:]],
        "table": [
            (drawn.frames[i] + 1, *(_number(s, i) for s in (drawn.similarity, drawn.average or ())))
            for i in range(1, len(drawn.frames))
        ],
    }


def _number(series: tuple[float | None, ...], i: int) -> str:
    value = series[i - 1] if i <= len(series) else None
    return "–" if value is None else f"{value:.3f}"


def cloud(drawn: Scatter) -> dict[str, Any]:
    """Return the points of a scatter plot as two paths of dots in a square of 100."""

    def dots(points: tuple[tuple[float, float], ...]) -> str:
        return "".join(f"M{4 + 92 * a:.1f} {96 - 92 * b:.1f}h0" for a, b in points)

    cut = len(drawn.points) - drawn.kept
    return {
        "dropped": dots(drawn.points[:cut]),
        "kept": dots(drawn.points[cut:]),
        "explained": [f"{100 * v:.0f} %" for v in drawn.explained],
        "said": f"{len(drawn.points)} of {drawn.total} tokens, {drawn.kept} of them kept",
    }
