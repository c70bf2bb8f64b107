"""The page needs nothing but itself, and says what the data says."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from earlytom.inspect import render_page
from earlytom.inspect.data import CellMap
from earlytom.inspect.images import heat, jpeg, png, thumbnails
from earlytom.inspect.paint import enlarged, paint
from earlytom.inspect.shapes import cells, outline
from tests.inspector.conftest import SHOWN

VOID = {"meta", "input", "br", "img"}


class Page(HTMLParser):
    """Collects tags and text; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def html(found):
    return render_page(found)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_nothing_is_loaded(html, page):
    assert not re.search(r"https?:|[\"'(]//|@import|url\((?!#)", html)
    for tag, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            if attrs.get(name):
                assert attrs[name].startswith(("#", "data:image/")), (tag, name)
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not any(name.startswith("on") for name in attrs)
    assert len(page.all("script")) == len(page.all("style")) == 1
    (policy,) = (m["content"] for m in page.all("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_method_is_shown(page, found):
    options = page.all("option")
    assert len(options) == 1 + len(SHOWN)
    frames = [a for a in page.all("button") if a.get("class") == "frame"]
    assert len(frames) == 8 * sum(len(r.maps) for r in found.runs)
    assert {f["data-label"] for f in frames} == set(SHOWN)
    assert {t["id"] for t in page.all("image") if "id" in t} == {f"f{i}" for i in range(8)}
    used = {u["href"][1:] for u in page.all("use")}
    assert used == {f"f{i}" for i in range(8)}


@pytest.mark.parametrize("label", SHOWN)
def test_every_method_alone(found, label):
    (run,) = (r for r in found.runs if r.label == label)
    page = Page(render_page(dataclasses.replace(found, runs=(run,))))
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert "method" not in ids  # nothing to choose from
    assert ("h-curves" in ids) == bool(run.curves)
    assert ("h-attention" in ids) == (run.attention is not None)
    assert ("h-cloud" in ids) == (run.scatter is not None)
    text = "".join(page.text)
    assert f"{run.report.tokens_out} of {run.report.tokens_in} visual tokens" in text


def test_what_was_asked_is_text(html, page, found):
    assert "<script>alert" not in html
    assert "<b>moves" not in html
    assert found.question in "".join(page.text)


def test_labels_are_text(found):
    evil = '"><img src=x onerror=alert(1)>'
    run = dataclasses.replace(found.runs[0], label=evil)
    answer = dataclasses.replace(found.full, text=evil)
    changed = dataclasses.replace(
        found,
        runs=(run,),
        full=answer,
        source=f"/x/{evil}.mp4",
        skipped=((evil, evil),),
        model=evil,
    )
    page = Page(render_page(changed))
    assert not page.all("img")
    assert not any("onerror" in attrs for _, attrs in page.tags)


def test_pictures_have_words(page):
    for tag, attrs in page.tags:
        if tag == "svg" and attrs.get("class") != "defs":
            assert attrs.get("aria-hidden") == "true" or attrs.get("aria-label")
        if tag == "button" and attrs.get("class") == "frame":
            assert re.match(r"Frame \d+ at \d+\.\d\d s, .+: \d+ ", attrs["aria-label"])
        if attrs.get("class") == "scroll":
            assert attrs["tabindex"] == "0"
            assert attrs["aria-label"]


def test_size(html):
    assert len(html) < 3_000_000
    noise = np.random.default_rng(0).integers(0, 256, (16, 240, 320, 3), np.uint8)
    assert 100_000 < sum(map(len, thumbnails(noise, 300_000))) <= 300_000
    assert thumbnails(noise[:1], 10)[0] == jpeg(noise[0], 80)


def test_cells_cover_the_frame():
    assert cells("mmddmdds", (2, 4)) == {
        "m": "M0 0h2v1h-2zM0 1h1v1h-1z",
        "d": "M2 0h2v1h-2zM1 1h2v1h-2z",
        "s": "M3 1h1v1h-1z",
    }
    assert outline("kkddkd", (2, 3), "k") == "M0 0h2M0 1h1M1 2h1M0 0v1M1 1v1M2 0v2"


def test_images():
    import io

    from PIL import Image

    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)
    picture = np.full((100, 50, 3), (200, 100, 50), np.uint8)
    small = Image.open(io.BytesIO(jpeg(picture, 60)))
    assert small.size == (30, 60)
    assert np.abs(np.asarray(small).astype(int) - picture[0, 0]).max() < 6
    assert heat(np.array([1 / 8, 8], np.float32)).tolist() == [[0, 34, 78], [254, 232, 56]]


def test_paint():
    drawn = CellMap("x", (2, 2), ("kdms",))
    done = paint(np.full((20, 20, 3), 200, np.uint8), drawn, 0)
    assert done[5, 5].tolist() == [200, 200, 200]  # kept: as it was, but for the outline
    assert done[0, 5].tolist() == [255, 176, 0]
    assert done[5, 15].max() < 70  # dropped: dark
    assert done[15, 5].tolist() != done[15, 15].tolist()
    lined = dataclasses.replace(drawn, borders=([(1, 0, 0, 1)],))
    white = (paint(np.zeros((20, 20, 3), np.uint8), lined, 0) == 255).all(2)
    assert white[:10, 10].all()
    assert white.sum() == 10
    assert enlarged(np.zeros((10, 20, 3), np.uint8), 101).shape == (50, 100, 3)
