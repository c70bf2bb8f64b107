"""Tables in ``docs/`` and ``README.md`` are those that code and results give."""

from __future__ import annotations

import json

import pytest

from tests.docs.tables import RESULTS, TABLES, by_loss, read, renewed

SUMMARY = json.loads((RESULTS / "summary.json").read_text())
CELLS = [c for c in SUMMARY["cells"] if c["split"] == SUMMARY["main_split"]]


@pytest.mark.parametrize("page", TABLES)
def test_pages_are_current(page: str) -> None:
    assert renewed(page, read(page)) == read(page), "run python -m tests.docs.tables"


@pytest.mark.parametrize("page", TABLES)
def test_renewing_writes_only_between_the_marks(page: str) -> None:
    text, name = read(page), next(iter(TABLES[page]))
    assert renewed(page, text.replace(f"<!-- {name} -->\n", f"<!-- {name} -->\n| old |\n")) == text


def test_every_method_of_the_package_is_measured_or_named_as_not() -> None:
    table = TABLES["methods.md"]["measured"]()
    for label in {c["label"] for c in CELLS} - {"full"}:
        assert f"| `{label}` |" in table


def test_what_may_be_lost_is_not_exceeded() -> None:
    """The first row names settings whose whole interval is within one per cent."""
    first = by_loss().splitlines()[2]
    label, ratio = first.split("`")[1], first.split("at ")[1].split(" %")[0]
    (cell,) = (
        c for c in CELLS if c["label"] == label and c["ratio"] == pytest.approx(float(ratio) / 100)
    )
    assert cell["relative"]["low"] >= 0.99
    cheaper = [c for c in CELLS if c["rank"] and c["flops_relative"] < cell["flops_relative"]]
    assert all(c["relative"]["low"] < 0.99 for c in cheaper)
