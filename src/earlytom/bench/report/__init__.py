"""Reports of a benchmark folder: tables, pictures, a leaderboard page and a JSON summary."""

from earlytom.bench.report.aggregate import summarise
from earlytom.bench.report.runs import Run, by_family, load_runs
from earlytom.bench.report.summary import Cell, Estimate, Summary
from earlytom.bench.report.write import FORMATS, write_report

__all__ = [
    "FORMATS",
    "Cell",
    "Estimate",
    "Run",
    "Summary",
    "by_family",
    "load_runs",
    "summarise",
    "write_report",
]
