import base64
import io
import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("jinja2", reason="the page needs Jinja2")

from earlytom.app.show import show_message, show_preview, show_result, style
from earlytom.inspect.states import count

EVIL = "<img src=x onerror=alert(1)> ${1+1} {{ 1+1 }} \"'"


class Parts(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(" ".join(data.split()))

    @property
    def images(self):
        return [a for t, a in self.tags if t == "img"]


@pytest.fixture(scope="module")
def found(desk):
    return desk.ask(desk.sample(2).video, EVIL, "afterimage", 0.25)


def test_result(found):
    page = Parts(show_result(found))
    (run,) = found.runs
    text = " ".join(page.text)
    assert "All tokens" in text
    assert "afterimage, 25 %" in text
    assert "32 of 32 visual tokens (100.0%)" in text
    assert f"{run.answer.tokens_out} of 32 visual tokens" in text
    for name in ("preprocess", "vision encoder", "projector and selection", "language model"):
        assert page.text.count(name) == 2
    assert f"{1000 * run.answer.timings.ttft:.1f} ms" in text
    assert f"{1000 * found.full.timings.ttft:.1f} ms" in text
    assert len(page.images) == 8 * (1 + len(run.maps))
    said = ", ".join(f"{n} {name}" for name, n in count([run.maps[0].states[5]]).items())
    assert page.images[8 + 5]["alt"] == f"frame 6 at 1.25 s: {said}"
    assert "right" not in text.split()  # nothing is known about the answer


def test_pictures_can_be_opened_and_differ_where_tokens_were_dropped(found):
    image = pytest.importorskip("PIL.Image")
    page = Parts(show_result(found))
    full, kept = (
        image.open(io.BytesIO(base64.b64decode(page.images[i]["src"].partition(",")[2])))
        for i in (3, 8 + 3)
    )
    assert full.size == kept.size == (280, 280)
    assert "d" in found.runs[0].maps[0].states[3]
    assert sum(kept.convert("L").histogram()[:32]) > sum(full.convert("L").histogram()[:32])


def test_verdict(found):
    right = found.full.text.strip().upper()
    text = Parts(show_result(found, right)).text
    assert "right" in text
    assert "wrong" in Parts(show_result(found, "not this")).text
    assert "not this" in Parts(show_result(found, "not this")).text


def test_what_users_wrote_is_text(found):
    for html in (show_result(found, EVIL), show_message(EVIL)):
        page = Parts(html)
        assert not any("onerror" in a for _, a in page.tags)
        assert EVIL in " ".join(page.text)


def test_preview(desk):
    sample = desk.sample(0)
    page = Parts(show_preview(EVIL, sample.video))
    assert [a["alt"] for a in page.images][:2] == ["frame 1 at 0.00 s", "frame 2 at 0.25 s"]
    assert len(page.images) == 8
    assert any(t == "div" and a.get("tabindex") == "0" and a["aria-label"] for t, a in page.tags)
    assert not any("onerror" in a for _, a in page.tags)


def test_message_is_announced():
    (tag, attrs) = Parts(show_message("no")).tags[0]
    assert (tag, attrs["role"]) == ("p", "alert")


def test_style_fetches_nothing():
    assert not re.search(r"url\(|@import|https?:", style())
