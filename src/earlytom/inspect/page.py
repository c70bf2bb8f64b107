"""The page: one HTML file that needs nothing but itself (made with Jinja2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from earlytom._version import __version__
from earlytom.inspect import images, shapes
from earlytom.inspect.data import Inspection, MethodRun
from earlytom.inspect.signals import EXTREME
from earlytom.inspect.states import MEANING, NAMES
from earlytom.pipeline import Answer
from earlytom.templates import load_template

TEMPLATE = "page.html.j2"
PARTS = (
    ("preprocess", "preprocess"),
    ("vision", "vision encoder"),
    ("tokens", "projector and selection"),
    ("prefill", "language model"),
)


def render_page(found: Inspection) -> str:
    """Return the page.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    missing = "the page needs Jinja2: pip install 'earlytom[report]'"
    template = load_template(__package__, TEMPLATE, missing)
    return str(template.render(**_context(found))) + "\n"


def _context(found: Inspection) -> dict[str, Any]:
    height, width = found.pictures.shape[1:3]
    letters = {k for run in found.runs for m in run.maps for row in m.states for k in row}
    answers = [("full", found.full), *((r.label, r.answer) for r in found.runs)]
    slowest = max(a.timings.ttft for _, a in answers)
    return {
        "title": f"What was kept of {Path(found.source).name}",
        "question": found.question,
        "model": found.model,
        "version": __version__,
        "aspect": f"{width} / {height}",
        "pictures": [images.address(x, "jpeg") for x in images.thumbnails(found.pictures)],
        "legend": [(k, NAMES[k], MEANING[k]) for k in NAMES if k in letters],
        "labels": [label for label, _ in answers],
        "answers": [answer_facts(label, a, found.full) for label, a in answers],
        "flow": _flow(found),
        "times": [time_parts(label, a, slowest) for label, a in answers],
        "parts": [*(name for _, name in PARTS), "rest"],
        "runs": [_run(run, found) for run in found.runs],
        "skipped": found.skipped,
        "extreme": f"{EXTREME:g}",
        "shape": {"label": shapes.LABEL, "thumb": shapes.THUMB},
        "curve": {"wide": shapes.WIDE, "high": shapes.HIGH, "left": shapes.LEFT},
    }


def answer_facts(label: str, answer: Answer, full: Answer) -> dict[str, str]:
    """Return what an answer says, what it cost and how it compares to ``full``, as text."""
    return {
        "label": label,
        "text": answer.text,
        "tokens": f"{answer.tokens_out} of {answer.tokens_in} visual tokens "
        f"({answer.tokens_out / answer.tokens_in:.1%})",
        "time": f"{1000 * answer.timings.ttft:.0f} ms to the first token",
        "faster": ""
        if answer is full
        else f"{full.timings.ttft / answer.timings.ttft:.2f} times as fast",
    }


def _flow(found: Inspection) -> list[dict[str, Any]]:
    """Rows of the budget; methods without a row (no step inside the language model) repeat 'in'."""
    flows = [dict((w, (a, b)) for w, a, b in run.flow()) for run in found.runs]
    names = dict.fromkeys(w for run in found.runs for w, _, _ in run.flow())
    order = sorted(names, key=lambda w: "columns" in w)  # the prompt comes last
    rows = []
    for name in order:
        full = next(f[name][0] for f in flows if name in f)
        entered = "visual tokens into the language model"
        values = [full, *(f[name][1] if name in f else f[entered][1] for f in flows)]
        cells = [(v, f"{100 * v / max(values):.1f}", f"{v / full:.0%}") for v in values]
        rows.append({"name": name, "cells": cells})
    return rows


def time_parts(label: str, answer: Answer, slowest: float) -> dict[str, Any]:
    """Return the time to the first token and its parts (``PARTS``, then the rest).

    Args:
        label: of the answer.
        answer: whose times.
        slowest: seconds that are the full width of a bar.

    Returns:
        ``label``; ``parts``: (milliseconds, per cent of the width) as text; ``ttft`` likewise.
    """
    times = answer.timings.to_dict()
    parts = [times[key] or 0.0 for key, _ in PARTS]
    parts.append(max(0.0, answer.timings.ttft - sum(parts)))
    return {
        "label": label,
        "parts": [(f"{1000 * p:.1f}", f"{100 * p / slowest:.2f}") for p in parts],
        "ttft": f"{1000 * answer.timings.ttft:.1f}",
    }


def _run(run: MethodRun, found: Inspection) -> dict[str, Any]:
    return {
        "label": run.label,
        "tree": shapes.tree(run, len(found.pictures)),
        "merges": [
            (
                f"after layer {s.layer}" if s.layer >= 0 else "embeddings",
                kept + 1,
                ", ".join(f"{f + 1} ({w:.3f})" for f, w in members),
            )
            for s in run.steps
            for kept, members in s.merges()
        ],
        "curves": [shapes.curve(c) for c in run.curves],
        "maps": [
            {"title": m.title, "grid": m.grid, "frames": shapes.frames(m, found.seconds)}
            for m in run.maps
        ],
        "attention": _attention(run),
        "cloud": None if run.scatter is None else shapes.cloud(run.scatter),
        "rewritten": run.rewritten,
    }


def _attention(run: MethodRun) -> dict[str, Any] | None:
    if run.attention is None or run.sinks is None:
        return None
    grid = run.attention.shape[1:]
    return {
        "grid": grid,
        "frames": [
            (frame, images.address(images.png(x), "png"), f"{values.max():.1f}")
            for frame, x, values in zip(
                run.report.first, images.heat(run.attention), run.attention, strict=True
            )
        ],
        "sinks": [(i % grid[1], i // grid[1]) for i in run.sinks.places],
        "share": f"{run.sinks.share:.0%}",
        "cells": f"{len(run.sinks.places) / (grid[0] * grid[1]):.0%}",
    }
