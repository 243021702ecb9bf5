"""The report in a browser: on a phone and a desk, by day and by night."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldmkit.evaluation.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium")

# Elements that stick out of the window and cannot be scrolled to in their own frame.
STICKING_OUT = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, svg')
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
# The ratio of contrast (WCAG 2.1, 1.4.3) of a text to the nearest ground that is not transparent.
CONTRAST = """e => { const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255).map(
    v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
  const clear = e => e.parentElement && /rgba.*, 0\\)/.test(getComputedStyle(e).backgroundColor);
  let ground = e; while (clear(ground)) ground = ground.parentElement;
  const [a, b] = [getComputedStyle(e).color, getComputedStyle(ground).backgroundColor].map(light);
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05) }"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_is_quiet_and_fits(browser: Any, run: Path, width: int, scheme: str) -> None:
    path = write_report(run)
    assert path.stat().st_size < 5_000_000
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate(STICKING_OUT) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(247, 247, 244)", "dark": "rgb(19, 21, 26)"}[scheme]
    for text in page.query_selector_all("p, td, th, h1, h2, h3, .chip, nav a, summary"):
        if text.is_visible() and text.inner_text().strip():
            assert text.evaluate(CONTRAST) >= 4.5, text.inner_text()
    page.close()


def test_images_are_described_and_can_be_enlarged(browser: Any, run: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(write_report(run).as_uri())
    images = page.query_selector_all("img")
    assert len(images) == 2
    assert all(image.evaluate("e => e.complete && e.naturalWidth > 0") for image in images)
    assert all(len(image.get_attribute("alt")) > 3 for image in images)
    charts = page.query_selector_all("svg[role=img]")
    assert charts
    assert all(" by " in chart.get_attribute("aria-label") for chart in charts)
    small = images[1].bounding_box()["width"]
    images[1].click()
    assert images[1].bounding_box()["width"] > 2 * small
    page.get_by_role("link", name="Close").click()
    assert images[1].bounding_box()["width"] == small
    page.close()


def test_the_machine_is_named_on_request_alone(run: Path) -> None:
    (run / "status.json").write_text('{"state": "finished", "host": "somebodys-laptop", "pid": 123456}')
    assert "somebodys-laptop" not in write_report(run).read_text(encoding="utf-8")
    assert "somebodys-laptop" in write_report(run, with_host=True).read_text(encoding="utf-8")
