"""The page in a browser, as a person uses it: on a phone and on a desk."""

from __future__ import annotations

import base64
import io
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ldmkit_demo.guard import HOST
from ldmkit_demo.server import Served, _port
from PIL import Image

import ldmkit
from ldmkit import cli

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium"),
    # gradio counts its events by an option that pandas has deprecated.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting'"),
]
PATIENCE = 120_000  # milliseconds; far more than any of it needs on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def runs(tiny: Path, other: Path, small: Path) -> list[Path]:
    """Two of the same slots, and one of another."""
    return [tiny, other, small]


@pytest.fixture(scope="module")
def port(runs: list[Path]) -> Iterator[int]:
    from ldmkit_demo.page import Shown

    port = _port(None)
    served = Served([Shown(str(run), ldmkit.load(run)) for run in runs], port)
    yield port
    served.close()


@pytest.fixture
def page(browser: Any, port: int) -> Iterator[Any]:
    """The page, open; what it said and asked of others is checked at the end."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(PATIENCE)
    opened.asked = []
    opened.said = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.on("console", lambda message: opened.said.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.goto(f"http://{HOST}:{port}/")
    opened.get_by_role("button", name="Sample", exact=True).first.wait_for()
    yield opened
    own = (f"http://{HOST}:{port}/", "data:", f"blob:http://{HOST}:{port}/")
    assert [url for url in opened.asked if not url.startswith(own)] == []
    assert opened.said == []
    opened.close()


def sampled(page: Any) -> Any:
    """Presses Sample and waits for every model of the tab."""
    page.get_by_role("button", name="Sample", exact=True).locator("visible=true").click()
    panel = page.locator(".results").locator("visible=true")
    panel.locator(".result.finished, .result.failed, .result.under-way").first.wait_for()
    panel.locator(".result.waiting").first.wait_for(state="detached")
    panel.locator(".result.under-way").first.wait_for(state="detached")
    return panel


def pixels(image: Any) -> np.ndarray[Any, Any]:
    data = image.get_attribute("src").partition("base64,")[2]
    return read(io.BytesIO(base64.b64decode(data)))


def read(file: Any) -> np.ndarray[Any, Any]:
    with Image.open(file) as image:
        return np.asarray(image)


def slide(page: Any, label: str, value: float) -> None:
    box = page.get_by_role("spinbutton", name=f"number input for {label}").locator("visible=true")
    box.fill(str(value))
    box.press("Enter")


def test_a_caption_becomes_an_image_of_each_model_and_the_command_makes_the_same(page, runs, tmp_path, monkeypatch):
    slide(page, "images", 2)
    page.get_by_placeholder("describe the image").fill("a red circle on snow")
    panel = sampled(page)
    assert panel.locator(".result.finished").count() == 2
    assert panel.locator(".error").count() == 0
    assert [heading.inner_text() for heading in panel.locator("h2").all()] == [str(run) for run in runs[:2]]
    monkeypatch.chdir(tmp_path)
    seen = []
    for number, result in enumerate(panel.locator(".result").all()):
        assert result.locator(".asked q").inner_text() == "a red circle on snow"
        seen.append([pixels(image) for image in result.locator(".images img").all()])
        assert len(seen[-1]) == 2
        words = shlex.split(result.locator("code").inner_text())
        assert words[:3] == ["ldmkit", "sample", str(runs[number])]
        with pytest.raises(SystemExit) as stop:
            cli.main([*words[1:], "--out", f"out-{number}"])
        assert not stop.value.code
        for seed, image in enumerate(seen[-1]):
            assert np.array_equal(image, read(f"out-{number}/seed-{seed:05d}.png"))
    assert not np.array_equal(seen[0][0], seen[1][0])


def test_a_painted_map_is_followed_beside_it_and_saved_for_the_command(page, tmp_path, monkeypatch):
    slide(page, "images", 1)
    page.get_by_label("text", exact=True).uncheck()
    use = page.get_by_label("semantic_map", exact=True)
    assert not use.is_checked()
    page.locator("#painter-semantic_map .swatch").nth(3).click()
    canvas = page.locator("#painter-semantic_map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    use.and_(page.locator(":checked")).wait_for()
    result = sampled(page).locator(".result").first
    asked = pixels(result.locator(".asked img"))
    assert asked.shape == (16, 16, 3)
    colours = {tuple(colour) for colour in asked.reshape(-1, 3).tolist()}
    assert len(colours) == 2
    assert tuple(asked[8, 8]) != tuple(asked[0, 0])
    link = result.locator(".command a")
    monkeypatch.chdir(tmp_path)
    saved = Path(link.get_attribute("download"))
    assert saved.name == "semantic_map.png"
    saved.write_bytes(base64.b64decode(link.get_attribute("href").partition("base64,")[2]))
    words = shlex.split(result.locator("code").inner_text())
    assert "semantic_map=semantic_map.png" in words
    with pytest.raises(SystemExit) as stop:
        cli.main([*words[1:], "--out", "out"])
    assert not stop.value.code
    assert np.array_equal(pixels(result.locator(".images img")), read("out/seed-00000.png"))


def test_bad_input_shows_its_message_and_no_traceback(page):
    page.get_by_role("button", name="Guidance").locator("visible=true").click()
    page.get_by_label("guidance as an expression").locator("visible=true").fill("text + nothing")
    result = sampled(page).locator(".result").first
    said = result.get_by_role("alert").inner_text()
    assert "nothing" in said
    assert "Traceback" not in page.content()
    assert result.locator("img").count() == 0
    page.get_by_label("guidance as an expression").locator("visible=true").fill("")
    page.get_by_role("button", name="Sample", exact=True).locator("visible=true").click()
    finished = page.locator(".results").locator("visible=true").locator(".result.finished")
    finished.nth(1).wait_for()
    assert page.get_by_role("alert").locator("visible=true").count() == 0


def test_another_model_has_its_own_tab_with_an_image_to_drop(page, runs, tmp_path):
    page.get_by_role("tab", name=runs[2].name).click()
    slide(page, "images", 1)
    result = sampled(page).locator(".result").first
    assert "nothing was given" in result.get_by_role("alert").inner_text()
    Image.new("RGB", (4, 4), (200, 30, 30)).save(tmp_path / "small.png")
    page.locator("#painter-low_res input[type=file]").set_input_files(str(tmp_path / "small.png"))
    page.get_by_text("4 x 4 pixels").wait_for()
    result = sampled(page).locator(".result").first
    assert pixels(result.locator(".images img")).shape[:2] == (16, 16)
    assert pixels(result.locator(".asked img"))[0, 0].tolist() == [200, 30, 30]
    (tmp_path / "none.png").write_text("no image")
    page.locator("#painter-low_res input[type=file]").set_input_files(str(tmp_path / "none.png"))
    page.get_by_text("none.png cannot be read as an image").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_on_a_phone_or_a_desk(browser, port, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    page.goto(f"http://{HOST}:{port}/")
    page.get_by_role("button", name="Sample", exact=True).first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sampled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
