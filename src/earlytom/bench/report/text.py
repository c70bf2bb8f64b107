"""Numbers and remarks in words, the same in every output."""

from __future__ import annotations

from typing import Any

from earlytom.bench.report.agreement import agreement
from earlytom.bench.report.summary import CONFIDENCE, Cell, Estimate, Summary

DASH = "–"
BETTER, WORSE = "▲", "▼"
SCOPE = (
    "The numbers hold for these weights and clips. They are no benchmark scores of a large model, "
    "and methods may rank differently on one."
)
ORDER = (
    "Methods are ordered by their mean over the ratios; those that did not reach every ratio "
    "follow. (over): the language model saw more than the ratio by over a tenth, mean over its "
    "layers, so the method has no rank there."
)
LEGEND = (
    "difference: points of accuracy to the reference, paired, with its interval. retention: visual "
    "tokens entering the language model, per cent of all; LLM retention: averaged over its layers. "
    "encoder, FLOPs, time: per cent of the full model's (FLOPs of the vision encoder; all FLOPs of "
    "one question, 2 x multiply-adds, closed form; median time to encode a clip and answer a "
    "question). ms: that time itself. A dash: not run or not measured."
)
_ENVIRONMENT = (
    ("cpu", ""),
    ("gpu", ""),
    ("device", "device"),
    ("threads", "threads"),
    ("dtype", ""),
    ("attention", "attention"),
    ("python", "Python"),
    ("torch", "torch"),
    ("transformers", "transformers"),
    ("earlytom", "earlytom"),
    ("commit", "commit"),
)


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share of 1 in per cent, without the sign."""
    return DASH if value is None else f"{100 * value:.{digits}f}"


def value_of(estimate: Estimate | None) -> float | None:
    """Return the value without its interval."""
    return None if estimate is None else estimate.value


def interval(estimate: Estimate | None) -> str:
    """Format ``value [low, high]`` in per cent."""
    if estimate is None:
        return DASH
    return f"{percent(estimate.value)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def points(estimate: Estimate | None) -> str:
    """Format a difference of shares in points with its interval."""
    if estimate is None:
        return DASH
    ends = ", ".join(f"{100 * v:+.1f}" for v in (estimate.low, estimate.high))
    return f"{100 * estimate.value:+.1f} [{ends}]"


def ratio_text(ratio: float) -> str:
    """Format a retention ratio: ``10 %``, ``2.5 %``."""
    return f"{100 * ratio:.10g} %"


def milliseconds(seconds: float | None) -> str:
    """Format a duration in ms."""
    return DASH if seconds is None else f"{1000 * seconds:.1f}"


def threads(number: Any) -> str:
    """Format a number of CPU threads."""
    return f"{number} thread" + ("" if number == 1 else "s")


def mark(cell: Cell) -> str:
    """Return the sign of a significant difference to the reference, or nothing."""
    if cell.versus is None or not cell.versus.significant:
        return ""
    return BETTER if cell.versus.difference.value > 0 else WORSE


def chosen_by(summary: Summary) -> str:
    """One sentence about the intervals and marks."""
    sentence = (
        f"Brackets: {100 * CONFIDENCE:g} % intervals of a paired bootstrap over clips "
        f"({summary.resamples:,} resamples); they cover the choice of clips, not of training seeds."
    ).replace(",000 ", " 000 ")
    if summary.reference in summary.labels:
        sentence += (
            f" {BETTER} / {WORSE}: significantly better / worse than `{summary.reference}` at the "
            "same ratio (two-sided, p < 0.05 after Holm's correction over the methods of a ratio)."
        )
    return sentence


def agreement_lines(summary: Summary) -> list[str]:
    """One sentence about the ranking on single checkpoints, if several ran the same methods."""
    found = {ratio_text(r): agreement(summary, r) for r in summary.ratios}
    shown = [f"{r}: {_ends(*ends[:2])} ({ends[2]})" for r, ends in found.items() if ends]
    if not shown:
        return []
    return [
        "Spearman's rank correlation of the methods on two checkpoints (fewest methods that both "
        f"ran): {', '.join(shown)}.",
        "",
    ]


def model_lines(summary: Summary) -> list[str]:
    """One line per model checkpoint."""
    lines = []
    for model in summary.models:
        parts = [str(model["name"])]
        if isinstance(model.get("parameters"), int | float):
            parts.append(f"{model['parameters'] / 1e6:.1f} M parameters")
        parts.append(f"weights: {model.get('weights') or 'not stated'}")
        if model.get("sha256"):
            parts.append(f"sha256 {str(model['sha256'])[:12]}")
        lines.append(", ".join(parts))
    return lines


def environment_lines(summary: Summary) -> list[str]:
    """One line per environment, with the dates of its runs."""
    lines = []
    for entry in summary.environments:
        parts = []
        for key, word in _ENVIRONMENT:
            value = entry.get(key)
            if value not in (None, ""):
                parts.append(threads(value) if key == "threads" else f"{word} {value}".strip())
        shown = {k for k, _ in _ENVIRONMENT} | {"runs", "dates"}
        parts += [f"{k} {v}" for k, v in entry.items() if k not in shown and _plain(v)]
        dates = entry["dates"]
        when = (
            f", {dates[0]}" if len(dates) == 1 else f", {dates[0]} to {dates[-1]}" if dates else ""
        )
        lines.append(f"{', '.join(parts)} ({entry['runs']} runs{when})")
    return lines or ["not stated by the runs"]


def split_lines(summary: Summary) -> list[str]:
    """One line per split."""
    return [
        f"{s.name}: {s.questions} questions about {s.clips} clips of {s.frames} frames, "
        f"seed {s.seed}"
        for s in summary.splits
    ]


def caption(summary: Summary) -> str:
    """Model, weights, machine, versions and date in one line, for pictures."""
    model = summary.models[0]
    name = str(model["name"]) if len(summary.models) == 1 else f"{len(summary.models)} checkpoints"
    size = model.get("parameters")
    size_text = f", {size / 1e6:.1f} M parameters" if isinstance(size, int | float) else ""
    parts = [f"{name}{size_text}, {model.get('weights') or 'weights not stated'}"]
    if summary.environments:
        entry = summary.environments[0]
        versions = [f"torch {entry['torch']}"] if entry.get("torch") else []
        parallel = [threads(entry["threads"])] if entry.get("threads") else []
        parts.append(
            ", ".join([str(entry.get("gpu") or entry.get("cpu", "")), *parallel, *versions])
        )
        parts += entry["dates"][-1:]
    return "; ".join(p for p in parts if p)


class Footnotes:
    """Numbers remarks in order of first use; equal remarks share a number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        """Return the number of ``text``, a new one if it was not used before."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1

    def of(self, cell: Cell | None) -> list[int]:
        """Return the numbers of a cell's remarks."""
        return [] if cell is None else [self.number(note) for note in cell.notes]


def _ends(low: float, high: float) -> str:
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and value != ""
