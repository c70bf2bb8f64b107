"""``report.md``: the tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from earlytom.bench.report import text
from earlytom.bench.report.runs import FULL
from earlytom.bench.report.summary import Cell, Split, Summary
from earlytom.bench.table import markdown_table

Show = Callable[[Cell], str]


def render_markdown(
    summary: Summary,
    pictures: Sequence[str] = (),
    others: Mapping[str, Summary] = MappingProxyType({}),
) -> str:
    """Return the report as GitHub-flavoured Markdown.

    Args:
        summary: what to show.
        pictures: file names of plots, relative to the report.
        others: of other model families, whose own reports lie in folders of their names.
    """
    page = _Page(summary)
    page.head()
    page.main_table()
    for ratio in summary.ratios:
        page.ratio_table(ratio)
    page.checkpoints()
    for family, other in others.items():
        page.family_table(family, other)
    for split in summary.splits:
        page.split_table(split)
    page.type_table()
    if pictures:
        page.add("## Pictures", "")
        page.add(*(f"![{name.rsplit('.', 1)[0].replace('-', ' ')}]({name})\n" for name in pictures))
    page.configurations()
    page.foot()
    return "\n".join(page.lines).rstrip() + "\n"


class _Page:
    """The lines so far and the footnotes that they refer to."""

    def __init__(self, summary: Summary) -> None:
        self.summary = summary
        self.lines: list[str] = []
        self.notes = text.Footnotes()

    def add(self, *lines: str) -> None:
        self.lines += lines

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.add(*markdown_table(header, rows), "")

    def methods_table(
        self,
        summary: Summary,
        split: str,
        show: Callable[[Cell | None], str],
        first: Sequence[Sequence[str]] = (),
        ratios: Sequence[float] | None = None,
    ) -> None:
        """A row per method that was run on the split, behind ``first``; a column per ratio."""
        rows, ratios = list(first), summary.ratios if ratios is None else ratios
        for label in summary.labels:
            cells = [summary.cell(split, label, ratio) for ratio in ratios]
            if any(cells):
                rows.append([_name(summary, label), *map(show, cells)])
        self.table(["method", *map(text.ratio_text, ratios)], rows)

    def put(self, cell: Cell | None, show: Show) -> str:
        """A table cell with its footnotes; a dash where nothing was run."""
        if cell is None:
            return text.DASH
        shown = show(cell) if cell.status == "done" else "unreachable"
        return shown + self.marks(cell)

    def marks(self, cell: Cell) -> str:
        """References to the footnotes of a cell."""
        return "".join(f"[^{n}]" for n in self.notes.of(cell))

    def head(self) -> None:
        s = self.summary
        self.add("# Accuracy and cost of visual token compression", "")
        self.add(f"Written by earlytom {s.earlytom} on {s.created}.", "")
        for title, lines in (
            ("Model", text.model_lines(s)),
            ("Questions", text.split_lines(s)),
            ("Environment", text.environment_lines(s)),
        ):
            self.add(*(f"- {title}: {_safe(line)}" for line in lines))
        self.add("", text.SCOPE, "")
        self.add(*(f"> Warning: {_safe(w)}\n" for w in s.warnings))

    def main_table(self) -> None:
        s = self.summary
        self.add(f"## Accuracy relative to the full model, split {_safe(s.main_split)}", "")
        full = s.full(s.main_split)
        if full and full.accuracy:
            said = f"{text.interval(full.accuracy)} %"
            self.add(f"The full model answers {said} of the questions; that is 100 in this table.")
        else:
            self.add("There is no full run: the table shows plain accuracy.")
        self.add("Each cell: per cent, 95 % interval, mark, (rank). The best of a ratio is bold.")
        self.add(text.chosen_by(s), "")
        self.add(text.ORDER, "")
        self.methods_table(s, s.main_split, lambda c: self.put(c, self._main_cell))

    def _main_cell(self, cell: Cell) -> str:
        estimate = cell.relative or cell.accuracy
        if estimate is None:
            return text.DASH
        best = self.summary.best(cell.split, cell.ratio)
        value = _bold(text.percent(estimate.value), bool(cell.rank) and cell.score == best)
        ends = f"[{text.percent(estimate.low)}, {text.percent(estimate.high)}]"
        rank = f"({cell.rank})" if cell.rank else "(over)"
        return " ".join(filter(None, [value, ends, text.mark(cell), rank]))

    def ratio_table(self, ratio: float) -> None:
        s = self.summary
        columns: list[tuple[str, Show]] = [
            ("rank", lambda c: str(c.rank or text.DASH)),
            ("accuracy", lambda c: text.percent(text.value_of(c.accuracy))),
            ("difference", lambda c: text.points(c.versus.difference if c.versus else None)),
            ("p (Holm)", lambda c: f"{c.versus.p_holm:.3f}" if c.versus else text.DASH),
            ("retention", lambda c: text.percent(c.retention)),
            ("LLM retention", lambda c: text.percent(c.llm_retention)),
            ("encoder", lambda c: text.percent(c.encoder_compute)),
            ("FLOPs", lambda c: text.percent(c.flops_relative)),
            ("ms", lambda c: text.milliseconds(c.seconds)),
            ("time", lambda c: text.percent(c.seconds_relative)),
        ]
        self.add(f"### At {text.ratio_text(ratio)}, split {_safe(s.main_split)}", "")
        labels = [x for x in s.labels if s.cell(s.main_split, x, ratio)]
        labels.sort(key=lambda x: (s.cell(s.main_split, x, ratio) or _NOTHING).rank or 10**6)
        rows = []
        for label in [FULL, *labels]:
            cell = s.full(s.main_split) if label == FULL else s.cell(s.main_split, label, ratio)
            if cell is None:
                continue
            rows.append([_name(s, label) + self.marks(cell), *_values(cell, columns)])
        self.table(["method", *(name for name, _ in columns)], rows)
        if ratio == s.ratios[-1]:
            self.add(text.LEGEND, "")

    def checkpoints(self) -> None:
        s = self.summary
        self.add("## Several checkpoints", "")
        if len(s.models) == 1:
            self.add("One checkpoint was used; how much training seeds matter is not known.", "")
            return
        self.add(
            f"{len(s.models)} checkpoints: mean, and range of the single values, relative to the "
            f"full model of the same checkpoint, split {_safe(s.main_split)}. Ratios that only one "
            "checkpoint ran are left out.",
            "",
        )
        ratios = _ratios(s, s.main_split, checkpoints=2)
        self.methods_table(s, s.main_split, lambda c: self.put(c, _spread), ratios=ratios)
        self.add(*text.agreement_lines(s))

    def family_table(self, family: str, other: Summary) -> None:
        self.add(f"## Another model family: {_safe(family)}", "")
        self.add(*(f"- {_safe(line)}" for line in text.model_lines(other)))
        self.add(*(f"- {_safe(line)}" for line in text.split_lines(other)), "")
        full = other.full(other.main_split)
        if full and full.accuracy:
            said = f"{text.interval(full.accuracy)} % of the questions right without compression."
            self.add(f"Per cent of that, split {_safe(other.main_split)}; {said}")
        self.add(f"Intervals and everything else: [report]({family}/report.md).", "")
        self.methods_table(other, other.main_split, lambda c: _score(other, c))

    def split_table(self, split: Split) -> None:
        s = self.summary
        self.add(f"## Split {_safe(split.name)}", "")
        self.add(
            "Accuracy in per cent, among four candidates (relative to full) / among all words "
            "(relative to full).",
            "",
        )
        full, ratios = s.full(split.name), _ratios(s, split.name)
        first = [[FULL, *[self.put(full, _both)] * len(ratios)]] if full else []
        self.methods_table(s, split.name, lambda c: self.put(c, _both), first, ratios)

    def type_table(self) -> None:
        s = self.summary
        if s.type_ratio is None:
            return
        self.add(
            f"## By question type at {text.ratio_text(s.type_ratio)}, split {_safe(s.main_split)}",
            "",
        )
        self.add("Accuracy in per cent; the best method of a type is bold.", "")
        cells = {x: s.cell(s.main_split, x, s.type_ratio) for x in s.labels}
        best = {
            kind: max(
                (c.by_type[kind] for c in cells.values() if c and kind in c.by_type), default=0
            )
            for kind in s.types
        }
        rows = []
        full = s.full(s.main_split)
        if full and full.by_type:
            rows.append([FULL, *(text.percent(full.by_type.get(k), 0) for k in s.types)])
        for label, cell in cells.items():
            if cell is None:
                rows.append([_name(s, label), *[text.DASH] * len(s.types)])
                continue
            values = [cell.by_type.get(k) for k in s.types]
            shown = [
                f"**{text.percent(v, 0)}**"
                if v is not None and v == best[k]
                else text.percent(v, 0)
                for k, v in zip(s.types, values, strict=True)
            ]
            if cell.status != "done":
                shown[0] = "unreachable"
            rows.append([_name(s, label) + self.marks(cell), *shown])
        self.table(["method", *map(_safe, s.types)], rows)

    def configurations(self) -> None:
        self.add("## Configurations", "")
        rows = [
            [
                _code(label),
                _safe(str(c["method"])),
                _safe(str(c["positions"])),
                _code(json.dumps(c["config"])),
            ]
            for label, c in self.summary.configs.items()
        ]
        self.add("| label | method | positions | settings |", "|---|---|---|---|")
        self.add(*("| " + " | ".join(row) + " |" for row in rows), "")

    def foot(self) -> None:
        self.add(*(f"[^{i}]: {_safe(note)}" for i, note in enumerate(self.notes.texts, 1)))


_NOTHING = Cell("", "", 0.0, "missing")


def _name(summary: Summary, label: str) -> str:
    return _safe(f"{label} (reference)" if label == summary.reference else label)


def _ratios(summary: Summary, split: str, checkpoints: int = 0) -> list[float]:
    """Ratios at which anything ran on a split, on at least so many checkpoints."""
    ran = [c for c in summary.cells if c.split == split and len(c.by_checkpoint) >= checkpoints]
    return [r for r in summary.ratios if any(c.ratio == r for c in ran)]


def _bold(shown: str, wanted: bool) -> str:
    return f"**{shown}**" if wanted else shown


def _values(cell: Cell, columns: Sequence[tuple[str, Show]]) -> list[str]:
    if cell.status != "done":
        return ["unreachable", *[text.DASH] * (len(columns) - 1)]
    return [show(cell) for _, show in columns]


def _both(cell: Cell) -> str:
    choice = text.percent(text.value_of(cell.accuracy))
    relative = text.percent(text.value_of(cell.relative))
    return (
        f"{choice} ({relative}) / {text.percent(cell.open_accuracy)} "
        f"({text.percent(cell.open_relative)})"
    )


def _spread(cell: Cell) -> str:
    values = cell.by_checkpoint.values()
    mean = text.percent(cell.score)
    return f"{mean} ({text.percent(min(values))} to {text.percent(max(values))})"


def _safe(line: str) -> str:
    """Text of a run file that cannot break a table or become markup."""
    for character in "\\`*[]|":
        line = line.replace(character, f"\\{character}")
    return " ".join(line.replace("<", "&lt;").split())


def _code(line: str) -> str:
    """The same as a code span."""
    return "`" + " ".join(line.replace("`", "'").replace("|", "\\|").split()) + "`"


def _score(summary: Summary, cell: Cell | None) -> str:
    if cell is None or cell.score is None:
        return text.DASH if cell is None or cell.status == "done" else "unreachable"
    best = bool(cell.rank) and cell.score == summary.best(cell.split, cell.ratio)
    return _bold(text.percent(cell.score), best)
