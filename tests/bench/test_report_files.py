import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from earlytom.bench.report import load_runs, summarise, write_report
from earlytom.bench.report.html import render_html
from earlytom.bench.report.markdown import render_markdown
from earlytom.bench.report.plots import spread
from earlytom.errors import ConfigError
from tests.bench.synthetic import METHODS, benchmark, first_right, run, store

PICTURES = ("accuracy-flops", "accuracy-retention", "accuracy-time", "question-types")


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return summarise(load_runs(benchmark(tmp_path_factory.mktemp("runs")))[0])


@pytest.fixture(scope="module")
def written(summary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    return folder, write_report(summary, folder)


def tables(markdown):
    """Every table as (title above it, rows of cells)."""
    found, title = [], ""
    for block in re.split(r"\n\n", markdown):
        if block.startswith("#"):
            title = block.lstrip("# ").splitlines()[0]
        lines = [x for x in block.splitlines() if x.startswith("|")]
        if lines:
            found.append((title, [[c.strip() for c in re.split(r"(?<!\\)\|", x)[1:-1]]
                                  for x in lines]))  # fmt: skip
    return found


def test_all_files_and_the_summary(summary, written):
    folder, paths = written
    names = {f"{p}.{kind}" for p in PICTURES for kind in ("png", "svg")}
    assert {p.name for p in paths} == names | {"leaderboard.html", "report.md", "summary.json"}
    assert {p.name for p in folder.iterdir()} == {p.name for p in paths}
    data = json.loads((folder / "summary.json").read_text())
    assert data == json.loads(json.dumps(summary.to_dict()))
    assert data["schema"] == 1
    for part in (data["models"][0]["weights"], data["environments"][0]["cpu"], data["created"]):
        assert part


def test_markdown_tables(summary, written):
    text = (written[0] / "report.md").read_text()
    found = dict(tables(text))
    main = {row[0]: row[1:] for row in found["Accuracy relative to the full model, split standard"]}
    assert main["method"] == ["50 %", "25 %", "10 %"]
    assert set(main) == {"method", "---", *METHODS} - {"earlytom-official"} | {
        "earlytom-official (reference)"
    }
    cell = summary.cell("standard", "holitom", 0.1)
    low, high = 100 * cell.relative.low, 100 * cell.relative.high
    assert main["holitom"][2] == f"{100 * cell.relative.value:.1f} [{low:.1f}, {high:.1f}] ▲ (2)"
    assert main["earlytom"][2].startswith("**")
    assert main["evs"][1] == "–"
    note = re.fullmatch(r"unreachable\[\^(\d)\]", main["prumerge"][2])
    assert f"[^{note[1]}]: unreachable: keeps at least 12 % of the tokens" in text
    at = {row[0]: row[1:] for row in found["At 10 %, split standard"]}
    full = summary.full("standard")
    assert at["full"][1] == f"{100 * full.accuracy.value:.1f}"
    assert at["holitom"][0] == "2"
    assert at["holitom"][4:8] == ["10.0", "9.0", f"{100 * cell.encoder_compute:.1f}",
                                  f"{100 * cell.flops_relative:.1f}"]  # fmt: skip
    assert at["prumerge[^" + note[1] + "]"][:2] == ["unreachable", "–"]
    long = {row[0]: row[1:] for row in found["Split long"]}
    other = summary.cell("long", "holitom", 0.5)
    assert long["holitom"][0] == (
        f"{100 * other.accuracy.value:.1f} ({100 * other.relative.value:.1f}) / "
        f"{100 * other.open_accuracy:.1f} ({100 * other.open_relative:.1f})"
    )
    kinds = {row[0]: row[1:] for row in found["By question type at 10 %, split standard"]}
    place = kinds["method"].index("needle")
    assert kinds["holitom"][place] == f"{100 * cell.by_type['needle']:.0f}"
    spread_over = {row[0]: row[1:] for row in found["Several checkpoints"]}
    ends = sorted(100 * v for v in cell.by_checkpoint.values())
    assert spread_over["holitom"][2].endswith(f"({ends[0]:.1f} to {ends[1]:.1f})")
    for _, rows in tables(text):
        assert len({len(row) for row in rows}) == 1
    for used in set(re.findall(r"\[\^(\d+)\](?!:)", text)):
        assert f"\n[^{used}]: " in text
    for picture in PICTURES:
        assert f"({picture}.png)" in text


def test_every_output_says_where_the_numbers_come_from(written):
    folder, _ = written
    for name in ("report.md", "leaderboard.html", "summary.json"):
        text = (folder / name).read_text()
        for fact in (
            "trained (generated videos)",
            "Invented CPU",
            "2.13.0",
            "2026-11-21",
            "abc1234",
        ):
            assert fact in text, (name, fact)


class Page(HTMLParser):
    """Tags, rows with their cells, and everything that could reach the network."""

    VOID = ("meta", "br", "line", "circle", "link", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.rows, self.links, self.buttons, self.heads = [], [], [], 0, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [v for k, v in attrs.items() if k in ("src", "href", "action", "data")]
        assert tag not in ("link", "img", "iframe", "object", "base")
        if tag == "tr":
            self.rows.append((attrs, {}))
        if tag in ("td", "th") and "data-key" in attrs and self.rows:
            self.rows[-1][1][attrs["data-key"]] = attrs.get("data-value")
            self.heads += [attrs] if attrs.get("scope") == "col" else []
        self.buttons += tag == "button"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_leaderboard_has_every_row_and_needs_no_network(summary, written):
    text = (written[0] / "leaderboard.html").read_text()
    page = Page(text)
    rows = page.rows[1:]
    assert len(rows) == len(summary.cells)
    for cell, (attrs, values) in zip(summary.cells, rows, strict=True):
        assert (attrs["data-split"], values["name"]) == (cell.split, cell.label)
        assert float(attrs["data-ratio"]) == cell.ratio
        shown = None if values["score"] == "" else float(values["score"])
        assert shown == (None if cell.score is None else pytest.approx(cell.score, rel=1e-5))
        assert set(values) == {h["data-key"] for h in page.heads}
    assert page.buttons == len(page.heads) + 3  # every column sorts; three themes
    assert [h["data-key"] for h in page.heads if "aria-sort" in h] == ["rank"]
    assert all(link.startswith("#note-") for link in page.links)
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_names_from_run_files_cannot_break_a_page(tmp_path):
    evil = "a|b</td><script>alert(1)</script>`\n![x](http://h/i.png)"
    store(tmp_path, run("full", 1.0, first_right(0.9), note=evil))
    extra = {"knob": evil}
    bad = {**run("evs", 0.1, first_right(0.5), note=evil), "label": evil, "config": extra}
    (tmp_path / "runs" / "evil.json").write_text(json.dumps(bad))
    made = summarise(load_runs(tmp_path)[0], resamples=200)
    page = render_html(made)
    assert page.count("<script>") == 1
    Page(page)
    text = render_markdown(made)
    for line in text.splitlines():  # within a code span nothing is markup
        if line.startswith("| `"):
            assert line.count("`") == 4
        else:
            assert "<script>" not in line
            assert "![x]" not in line
    for _, rows in tables(text):
        assert len({len(row) for row in rows}) == 1


def test_pictures_show_something(written):
    folder, _ = written
    for name in PICTURES:
        with Image.open(folder / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("RGB"))
        assert pixels.shape[0] > 600
        assert pixels.shape[1] > 1200
        colours = {tuple(c) for c in pixels.reshape(-1, 3)[::7].tolist()}
        assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (255, 255, 255)} <= colours
        drawn = ET.parse(folder / f"{name}.svg").getroot()
        assert len(list(drawn.iter("{http://www.w3.org/2000/svg}path"))) > 50


def test_only_what_was_asked_for_is_written(summary, tmp_path):
    assert [p.name for p in write_report(summary, tmp_path, ["json"])] == ["summary.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    with pytest.raises(ConfigError, match="unknown format 'pdf'"):
        write_report(summary, tmp_path, ["pdf"])


@pytest.mark.parametrize("labels", [0, 1, 30])
def test_few_and_many_methods(tmp_path, labels):
    records = [run("full", 1.0, first_right(0.9))]
    records += [run(f"method-{i:02d}-with-a-long-name", 0.1, first_right(0.3 + 0.01 * i))
                for i in range(labels)]  # fmt: skip
    store(tmp_path, *records)
    made = summarise(load_runs(tmp_path)[0], resamples=100)
    names = {p.name for p in write_report(made, tmp_path)}
    assert {"report.md", "leaderboard.html"} <= names
    assert ("accuracy-retention.png" in names) == (labels > 0)
    assert len(made.highlighted) == min(labels, 6)


heights = st.lists(st.floats(0, 100), min_size=1, max_size=8).map(sorted)


@given(heights, st.floats(0.5, 10))
def test_spread_labels_do_not_touch(values, gap):
    placed = spread(values, gap, 0.0, 100.0)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(placed))
    assert min(placed) >= -1e-6
    assert max(placed) <= 100 + 1e-6
    apart = all(b - a >= gap for a, b in pairwise(values))
    if apart:
        assert placed == pytest.approx(values)
