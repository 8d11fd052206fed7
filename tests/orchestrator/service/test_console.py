"""The console in real Chromium: by keyboard, at 400 pixels, in the dark, without an error on its own console."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.service.client import Client, Edit
from tests.support.live_service import LiveService

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.thorough, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")]

PAGES = ("edits", "new", "versions", "versions/0", "probes", "chat", "health")


@pytest.fixture(params=[("light", 1200), ("dark", 400)], ids=["wide", "400 pixels, dark"])
def page(request: pytest.FixtureRequest, service: LiveService) -> Iterator[Any]:
    """A page that is logged in; nothing may go wrong on it."""
    scheme, width = request.param
    wrong: list[str] = []
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
        opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.goto(f"{service.address}/")
        opened.wait_for_function("() => document.activeElement.name === 'token'")  # a browser gives the focus when it first paints
        opened.keyboard.type(service.token)
        opened.keyboard.press("Enter")
        opened.wait_for_url("**/console/edits")
        yield opened
        browser.close()
    assert wrong == []


def test_every_page_fits_and_can_be_told_by_a_screen_reader(page: Any, service: LiveService, tmp_path: Path) -> None:
    for place in PAGES:
        page.goto(f"{service.address}/console/{place}")
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth"), place
        assert page.locator("h1").count() == page.locator("main").count() == 1
        assert page.evaluate("() => [...document.querySelectorAll('input:not([type=hidden]), select, textarea')].every(f => f.labels.length)"), place
        assert page.evaluate("() => [...document.querySelectorAll('button, a')].every(b => b.textContent.trim() || b.ariaLabel)"), place
        page.screenshot(path=tmp_path / "page.png")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "Skip to the content"


def test_a_fact_is_asked_for_shown_before_and_after_and_rolled_back(page: Any, service: LiveService, client: Client, facts: Iterator[Edit]) -> None:
    asked = next(facts)
    before = client.versions()[0]["number"]
    page.goto(f"{service.address}/console/new")
    page.fill("textarea[name=prompt]", asked.prompt)
    page.fill("input[name=target]", asked.target)
    page.get_by_role("button", name="Ask for it").click()
    page.wait_for_url("**/console/edits/e-*")
    edit = page.url.rsplit("/", 1)[1]
    assert client.wait(edit).state == "live"
    page.reload()
    live = page.get_by_role("region", name="Live version")
    _until(lambda: asked.target in live.inner_text())
    assert asked.target not in page.get_by_role("region", name="Unedited model").inner_text().split("\n")[-1][: len(asked.target) + 1]
    page.goto(f"{service.address}/console/versions")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name=f"Roll back to version {before}", exact=True).click()
    _until(lambda: "Done. Version" in page.inner_text("main"))
    assert client.edit(edit).state == "quarantined"


def test_two_versions_answer_next_to_each_other(page: Any, service: LiveService) -> None:
    page.goto(f"{service.address}/console/chat")
    page.fill("textarea", "hello")
    page.get_by_role("button", name="Ask both").click()
    _until(lambda: page.locator("#answers .card").count() == 2)
    assert "is-error" not in page.inner_html("#answers")


def test_a_list_is_filtered_while_a_person_types(page: Any, service: LiveService, client: Client) -> None:
    word = f"zebra{time.monotonic_ns()}"
    edit = client.add(Edit(f"<img src=x onerror=alert(1)> {word}", "<b>x</b>"))
    page.goto(f"{service.address}/console/edits")
    page.locator("#q").press_sequentially(word)
    _until(lambda: page.locator("#rows tr").count() == 1)
    assert "<img src=x" in page.inner_text("#rows")
    client.remove(edit.id)


def _until(true: Any) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)
