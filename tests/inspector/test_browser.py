"""The page in a real browser: no errors, no sideways scrolling, controls by keyboard.

Needs playwright and a Chromium of the system, which are no dependencies of this package.
"""

from __future__ import annotations

import pytest

from earlytom.inspect import render_page

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_page(found, browser, tmp_path, width, scheme):
    path = tmp_path / "report.html"
    path.write_text(render_page(found), encoding="utf-8")
    view = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, said = view.new_page(), []
    page.on("console", lambda m: said.append(m.text))
    page.on("pageerror", lambda e: said.append(str(e)))
    page.on("request", lambda r: said.append(r.url) if r.url.startswith("http") else None)
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("button.frame").nth(2).focus()
    page.keyboard.press("Enter")
    assert page.locator("#dialog-title").inner_text() == "Frame 3 of 8"
    page.keyboard.press("ArrowRight")
    assert page.locator("#dialog-title").inner_text() == "Frame 4 of 8"
    assert page.evaluate("dialog.scrollWidth <= dialog.clientWidth")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.frame") == "2"
    page.select_option("#method", "1")
    assert page.locator("[data-method='1']").first.is_visible()
    assert not page.locator("[data-method='0']").first.is_visible()
    page.locator("#keys input").first.uncheck()
    letter = page.locator("#keys input").first.get_attribute("value")
    look = f"getComputedStyle(document.querySelector('button.frame .{letter}')).visibility"
    assert page.evaluate(look) == "hidden"
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="light" if scheme == "dark" else "dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert not said
    view.close()
