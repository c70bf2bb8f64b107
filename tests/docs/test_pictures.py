"""Pictures of ``docs/how-it-works.md`` are those that the script draws from the shipped model."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from earlytom.pipeline import VideoQA
from tests.docs.blocks import ROOT
from tests.docs.pictures import ASSETS, FLOWS, THEMES, Flow, draw_flows, measured_flows, svg_files

PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]


@pytest.fixture(scope="module")
def flows() -> list[Flow]:
    return measured_flows(VideoQA.load(device="cpu"))


def test_svg_files_are_current(flows: list[Flow]) -> None:
    """Counts only: they do not depend on how a machine rounds."""
    for name, text in svg_files(flows).items():
        assert (ASSETS / name).read_text(encoding="utf-8") == text, (
            "run python -m tests.docs.pictures"
        )


def test_flows_say_what_the_methods_do(flows: list[Flow]) -> None:
    by_name = dict(zip(FLOWS, flows, strict=True))
    assert by_name["holitom"].encoder == [1.0] * 12
    assert by_name["earlytom"].encoder == [1, 1, *[11 / 16] * 3, *[7 / 16] * 7]
    assert by_name["afterimage"].encoder[0] == 1 > by_name["afterimage"].encoder[1]
    assert by_name["afterimage"].language == [0.25] * 6
    assert by_name["fastv"].language[0] == 1
    assert sum(by_name["fastv"].language) / 6 == pytest.approx(0.25, abs=0.01)


def test_drawn_text_is_escaped() -> None:
    drawn = draw_flows([Flow("<b>", [1.0], [0.5], 'a & "b"')], THEMES["light"])
    words = [e.text for e in ElementTree.fromstring(drawn).iter() if e.text and e.text.strip()]
    assert "<b>" in words
    assert 'a & "b"' in words


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_pictures_exist_and_are_described(page: object) -> None:
    for said, link in re.findall(r"!\[([^\]]*)\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).is_file(), link
        assert len(said) > 15, f"{link} needs an alternative text"
