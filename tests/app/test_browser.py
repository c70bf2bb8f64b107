"""The page in a real browser: clicked like a user does, at two widths, light and dark.

Needs Gradio, playwright and a Chromium of the system (`make test-app` brings the first two).
"""

from __future__ import annotations

import re

import pytest

pytest.importorskip("gradio", reason="Gradio is not installed (make test-app does)")

from tests.app.bad_files import SAID
from tests.app.running import serving

pytestmark = pytest.mark.slow
# what Gradio's own script says while it follows an upload; the second one is about a refused
# upload, whose progress may be gone before it asks for it
HARMLESS = re.compile(r"Method not implemented\.|Failed to load .* 404 \(Not Found\)|Response")
SIZES = [(1280, "light"), (360, "dark")]


@pytest.fixture(scope="module")
def address(desk):
    with serving(desk) as (address, _):
        yield address


@pytest.fixture(params=SIZES, ids=lambda s: f"{s[0]}-{s[1]}")
def page(browser, address, request):
    """The page; at the end nothing was complained about, and nothing else was contacted."""
    width, scheme = request.param
    view = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, said = view.new_page(), []
    page.set_default_timeout(60_000)
    page.on("console", lambda m: None if harmless(m) else said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on(
        "request", lambda r: None if r.url.startswith((address, "data:")) else said.append(r.url)
    )
    page.goto(address)
    page.locator("#ask").wait_for()
    yield page
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert said == []
    view.close()


def harmless(message):
    place = message.location["url"]
    elsewhere = "404" in message.text and "/gradio_api/upload_progress" not in place
    return HARMLESS.fullmatch(message.text) and not elsewhere


def wait(page, where, text):
    page.locator(where, has_text=text).first.wait_for()


def test_pick_and_ask(page, desk):
    sample = desk.sample(1)
    page.locator("#clips button.thumbnail-item").nth(1).click()
    wait(page, "#preview", sample.title)
    assert page.locator("#question textarea").input_value() == sample.questions[0].question
    assert page.locator("#preview img").count() == 8
    page.locator("#known input").click()
    page.get_by_role("option", name=sample.questions[2].question, exact=True).click()
    page.locator("#method input").click()
    page.get_by_role("option", name="holitom", exact=True).click()
    wait(page, "#method", "HoliTom")
    page.fill("#ratio input", "0.5")
    page.click("#ask")
    wait(page, "#result", "holitom, 50 %")
    wait(page, "#result .et-question", sample.questions[2].question)
    wait(page, "#result .et-question", f"Right answer: {sample.questions[2].answer}")
    assert page.locator("#result section").count() == 2
    assert page.locator("#result details[open] img").count() == 16
    broken = "[...document.querySelectorAll('#result img')].filter(i => !i.naturalWidth).length"
    assert page.evaluate(broken) == 0


def test_own_words_by_keyboard(page):
    page.locator("#question textarea").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("<b>what</b> ${1+1} is it?")
    page.keyboard.press("Enter")
    wait(page, "#result .et-question", "<b>what</b> ${1+1} is it?")


def test_clips_by_keyboard(page, desk):
    page.locator("#clips button.thumbnail-item").nth(3).focus()
    page.keyboard.press("Enter")
    wait(page, "#preview", desk.sample(3).title)


def test_upload(page, clip):
    page.set_input_files("#upload input[type=file]", clip)
    wait(page, "#preview", "clip.mp4, 8 frames")
    assert not page.locator("#known").is_visible()
    page.locator("#clips .selected").wait_for(state="detached", timeout=5000)
    page.fill("#question textarea", "what colour is the circle")
    page.click("#ask")
    wait(page, "#result", "afterimage, 25 %")
    page.locator("#clips button.thumbnail-item").nth(0).click()  # back to a clip
    wait(page, "#preview", "Clip 1")
    page.locator("#known").wait_for()
    assert page.locator("#upload", has_text="clip.mp4").count() == 0


def test_bad_uploads(page, bad):
    for what in ("text", "cut", "empty"):
        page.set_input_files("#upload input[type=file]", bad[what])
        wait(page, "#preview [role=alert]", SAID[what])
    page.click("#ask")  # about the clip that is still chosen
    wait(page, "#result", "afterimage, 25 %")


def test_upload_that_is_too_large(page, tmp_path):
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(1_100_000))
    page.set_input_files("#upload input[type=file]", large)
    wait(page, "body", "maximum allowed size")
    page.click("#ask")
    wait(page, "#result", "afterimage, 25 %")


def test_bad_requests(page):
    page.fill("#ratio input", "1.5")
    page.click("#ask")
    wait(page, "#result [role=alert]", "retention_ratio must be a number in (0, 1], got 1.5")
    page.fill("#ratio input", "0.5")
    page.fill("#question textarea", "   ")
    page.click("#ask")
    wait(page, "#result [role=alert]", "type a question, or choose one")


def test_two_users(browser, address, desk):
    pages = [browser.new_context().new_page() for _ in range(2)]
    for i, page in enumerate(pages):
        page.goto(address)
        page.locator("#clips button.thumbnail-item").nth(4 + i).click()
        wait(page, "#preview", desk.sample(4 + i).title)
    for page in pages:
        page.click("#ask")
    shown = []
    for i, page in enumerate(pages):
        wait(page, "#result .et-question", desk.sample(4 + i).questions[0].question)
        shown.append(page.locator("#result img").first.get_attribute("src"))
        page.context.close()
    assert shown[0] != shown[1]
