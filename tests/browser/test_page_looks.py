# SPDX-License-Identifier: Apache-2.0
"""Who can use the page: sizes, colours, keyboards, fingers, screen readers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from cdp import Page
from pages import IDLES, SIZES, begin_sample, is_hidden, let_microphone, said

from lipsync_fast.client.local import LocalServer

pytestmark = pytest.mark.clock

SMALLEST = 24
"""CSS pixels, of what is pressed: WCAG 2.2, 2.5.8."""
PRESSED = """
[...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")]
  .filter((e) => e.checkVisibility() && e.getClientRects().length)
  .map((e) => [e.id || e.name || e.textContent.trim().slice(0, 20) || e.tagName,
    e.closest("label") ?? e].map((e) => e.getBoundingClientRect?.() ?? e))
  .map(([name, r]) => [name, r.width, r.height, r.left, r.right])
"""


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's source."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("axe-playwright-python is not installed (extra: test)")
    return (Path(found.origin).parent / "axe.min.js").read_text()


def complaints(page: Page, axe: str) -> list[str]:
    """What axe-core has against the page as it is now."""
    if not page.value("!!window.axe"):
        page.command("Runtime.evaluate", expression=axe)
    # Colours on their way from one scheme to the other are nobody's.
    page.until(
        "document.getAnimations().every((a) => a.effect.getComputedTiming().iterations > 1e6)"
    )
    found = page.value(
        "axe.run(document, {resultTypes: ['violations']}).then((r) => r.violations.map((v) =>"
        " v.id + ': ' + v.help + ' ' + v.nodes.map((n) => n.target.join(' ')).join(', ')))"
    )
    return list(found)


def notice(page: Page, word: str, **values: str) -> None:
    """Have the page show a failure."""
    page.value(
        f"import('/assets/notices.js').then((m) => m.notice({word!r}, {json.dumps(values)},"
        " () => {}, 'test'))"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_has_no_complaints(
    page: Page, served: LocalServer, axe: str, dark: bool, tmp_path: Path
) -> None:
    let_microphone(page, served.http_url, "granted")
    for width, height in SIZES:
        page.look(width, height, dark=dark, phone=width < 900)
        assert complaints(page, axe) == [], (width, height)
    page.click("#about summary")
    notice(page, "overloaded")
    assert complaints(page, axe) == [], "with a notice"
    notice(page, "wrong-token")
    assert complaints(page, axe) == [], "with the form of the token"
    page.click("#notice-close")
    begin_sample(page, 3)
    assert complaints(page, axe) == [], "while it speaks"
    page.click("#stop")
    page.click("#mic")
    page.until("!document.querySelector('#device-label').hidden")
    assert complaints(page, axe) == [], "with the microphone"
    page.click("#mic")


def test_everything_that_is_pressed_is_large_enough(page: Page, served: LocalServer) -> None:
    let_microphone(page, served.http_url, "granted")
    page.click("#mic")
    page.until("!document.querySelector('#device-label').hidden")
    notice(page, "wrong-token")
    for width, height in SIZES:
        page.look(width, height, phone=width < 900)
        found: list[list[Any]] = page.value(PRESSED)
        names = {name for name, *_ in found}
        assert {"sample", "voice-back", "device", "token", "avatar", "Statistics"} <= names
        small = [f for f in found if min(f[1], f[2]) < SMALLEST and f[0] != "Skip to the controls"]
        assert not small, (width, height)
        outside = [f for f in found if f[3] < 0 or f[4] > width]
        assert not outside, (width, height)
        assert page.value("document.documentElement.scrollWidth") <= width
    page.click("#mic")


def test_a_notice_moves_no_button(page: Page) -> None:
    places = (
        "[...document.querySelectorAll('.controls button')].map((b) =>"
        " { const r = b.getBoundingClientRect(); return [r.x, r.y] })"
    )
    for width, height in SIZES:
        page.look(width, height, phone=width < 900)
        page.value("document.querySelector('#notice').hidden = true; scrollTo(0, 0)")
        before = page.value(places)
        for word in ("file-large", "token"):
            notice(page, word, detail="a rather long name of a recording that somebody made.wav")
            assert page.value(places) == before, (width, height, word)
            covered = page.value(
                "(() => { const n = document.querySelector('#notice').getBoundingClientRect();"
                " const s = document.querySelector('.screen').getBoundingClientRect();"
                " return n.top < s.top || n.bottom > s.bottom })()"
            )
            assert not covered, "it lies over the picture alone"


def test_a_phone_on_its_side_shows_picture_and_controls(page: Page) -> None:
    page.look(844, 390, phone=True)
    page.value("scrollTo(0, 0)")
    boxes = page.value(
        "['canvas', '#sample', '#stop', '#full'].map((s) =>"
        " { const r = document.querySelector(s).getBoundingClientRect();"
        " return [r.left, r.top, r.right, r.bottom] })"
    )
    assert all(bottom <= 390 for *_, bottom in boxes), boxes
    assert boxes[0][2] <= boxes[1][0], "beside each other"


def test_the_keyboard_is_not_lost(page: Page) -> None:
    """What disappears gives the focus on."""
    notice(page, "overloaded")
    page.value("document.querySelector('#notice-close').focus()")
    page.press("Enter", 13)
    assert is_hidden(page, "#notice")
    assert page.value("document.activeElement.id") == "controls"
    begin_sample(page, 2)
    page.value("document.querySelector('#stop').focus()")
    page.press("Enter", 13)
    page.until("lipsync.state === 'idle'")
    assert page.value("document.activeElement.id") == "sample"


def test_full_screen(page: Page) -> None:
    page.click("#full")
    page.until("document.fullscreenElement?.id === 'stage'")
    page.until("document.querySelector('#full').ariaPressed === 'true'")
    inside = page.value(
        "['canvas', '#stop', '#full'].every((s) => document.querySelector(s)"
        ".getBoundingClientRect().bottom <= innerHeight)"
    )
    assert inside
    drawn = page.value("lipsync.metrics.drawn")
    page.until(f"lipsync.metrics.drawn > {drawn} + 5")
    page.click("#full")
    page.until("!document.fullscreenElement")
    page.until("document.querySelector('#full').ariaPressed === 'false'")


def test_a_failure_is_said_where_it_can_be_heard(page: Page) -> None:
    notice(page, "mic-busy")
    assert "another program" in said(page)
    assert page.value("document.querySelector('#notice').role") == "alert"
    page.until(IDLES)
