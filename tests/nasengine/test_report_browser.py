"""A report in a real browser: it opens without errors and requests, and its points copy commands."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nasengine.reporting import report
from tests.nasengine.reports import Page as Parsed
from tests.nasengine.runs import record

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
NO_CLIPBOARD = "Object.defineProperty(Navigator.prototype, 'clipboard', {value: undefined})"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found = None
    if found is None:
        if os.environ.get("NASENGINE_BROWSER") == "require":
            pytest.fail("There must be chromium and playwright, since NASENGINE_BROWSER=require, but one is missing.")
        pytest.skip("there is no chromium, or no playwright")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def file(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(pipeline, out=tmp_path_factory.mktemp("browser") / "report.html")


class Opened:
    """A page in a context of its own, and what went wrong in it."""

    def __init__(
        self, browser: Browser, file: Path, width: int = 1200, script: str = "", scheme: str = "light"
    ) -> None:
        colours: Any = scheme
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        if script:
            self.page.add_init_script(script)
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("#configuration")

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()

    def front_point(self, place: int) -> Locator:
        chart = self.page.locator('.chart[data-chart="front"]')
        chart.scroll_into_view_if_needed()
        return chart.locator(".scatterlayer .trace").last.locator("path.point").nth(place)

    def click(self, point: Locator) -> None:
        box = point.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x - 3, y)
        self.page.mouse.move(x, y)
        self.page.wait_for_selector(".hoverlayer .hovertext")
        self.page.mouse.click(x, y)
        self.page.wait_for_selector("#note.shown")

    def pasted(self) -> str:
        """What the clipboard holds, by pasting it."""
        self.page.evaluate("document.body.append(Object.assign(document.createElement('textarea'), {id: 'paste'}))")
        self.page.locator("#paste").focus()
        self.page.keyboard.press("Control+v")
        return str(self.page.locator("#paste").input_value())


def test_it_opens_without_errors_and_requests(browser: Browser, file: Path) -> None:
    with Opened(browser, file) as opened:
        charts = opened.page.locator(".chart")
        assert charts.count() == opened.page.locator(".chart .main-svg:first-child").count() == 7
        assert opened.page.locator("noscript").first.is_hidden()
        title = opened.page.locator('.chart[data-chart="front"] .xtitle')
        assert title.text_content() == "parameters"
        opened.page.get_by_label("multiply-adds").check()
        assert title.text_content() == "multiply-adds"
        assert opened.errors == [] and opened.requests == [file.as_uri()]


@pytest.mark.parametrize("script", ["", NO_CLIPBOARD], ids=["clipboard", "fallback"])
def test_a_point_tells_its_numbers_and_copies_its_command(browser: Browser, file: Path, script: str) -> None:
    front = json.loads(Parsed(file).scripts[0])["fronts"][0]
    with Opened(browser, file, script=script) as opened:
        place = len(front["points"]) - 1
        opened.click(opened.front_point(place))
        point = front["points"][place]
        told = opened.page.locator(".hoverlayer .hovertext").text_content() or ""
        assert f"parameters {point['costs']['parameters']:,.0f}" in told and "guessed score" in told
        assert opened.page.locator("#note").inner_text() == f"Copied\n{point['command']}"
        assert opened.pasted() == point["command"] != ""
        assert opened.errors == [] and len(opened.requests) == 1


def test_a_choice_is_shown_in_lines(browser: Browser, file: Path) -> None:
    with Opened(browser, file) as opened:
        title = opened.page.locator('.chart[data-chart="weights"] .ytitle')
        assert title.text_content() == "weight in cell/0-1"
        opened.page.select_option("#choice-0", "cell/1-3")
        assert title.text_content() == "weight in cell/1-3"
        opened.page.locator('.chart[data-chart="weights-map"]').scroll_into_view_if_needed()
        box = opened.page.locator('.chart[data-chart="weights-map"] .nsewdrag').first.bounding_box()
        assert box is not None
        opened.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 5)
        opened.page.wait_for_selector(".hoverlayer .hovertext")
        opened.page.mouse.click(box["x"] + box["width"] / 4, box["y"] + 5)
        opened.page.wait_for_function("document.getElementById('choice-0').value === 'cell/0-1'")
        assert title.text_content() == "weight in cell/0-1" and opened.errors == []


def test_by_keyboard_alone(browser: Browser, file: Path) -> None:
    with Opened(browser, file) as opened:
        opened.page.keyboard.press("Tab")
        assert opened.page.evaluate("document.activeElement.textContent") == "to the content"
        opened.page.locator("#front-0 summary").focus()
        opened.page.keyboard.press("Enter")
        button = opened.page.locator("#front-0 button.copy").first
        button.focus()
        opened.page.keyboard.press("Enter")
        opened.page.wait_for_selector("#note.shown")
        assert opened.pasted() == button.get_attribute("data-copy")


def test_light_dark_and_narrow(browser: Browser, file: Path) -> None:
    papers = []
    for scheme in ("light", "dark"):
        with Opened(browser, file, width=390, scheme=scheme) as opened:
            papers.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
            opened.page.click("#theme")
            papers.append(opened.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert opened.errors == []
    assert papers[0] == papers[3] != papers[1] == papers[2]


def test_names_run_no_code(browser: Browser, pipeline: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(pipeline, tmp_path / "<img src=x onerror=hacked=1>"))
    whole = record(copied)
    whole["config"]["data"]["name"] = "</script><script>hacked=1</script>"
    (copied / "run.json").write_text(json.dumps(whole))
    text = (copied / "candidates.csv").read_text().replace("predictor", "<img src=x onerror=hacked=1>")
    (copied / "candidates.csv").write_text(text)
    file = report([copied, copied / "search"], out=tmp_path / "report.html")
    with Opened(browser, file) as opened:
        points = opened.page.locator('.chart[data-chart="candidates"] path.point')
        points.last.hover(force=True)
        assert opened.page.evaluate("typeof hacked") == "undefined"
        assert opened.errors == [] and len(opened.requests) == 1
