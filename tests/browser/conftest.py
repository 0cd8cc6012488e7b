# SPDX-License-Identifier: Apache-2.0
"""One browser and one server for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cdp import Browser, Page, browser, chromium
from pages import CONFIG, IDLES, QUICK
from spoken_texts import speaks_texts
from talking import Serve
from tiny import made_once, write_half_demo

from lipsync_fast.avatars.library import VARIABLE
from lipsync_fast.client.local import LocalServer


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser; skips where there is none."""
    if chromium() is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="package", autouse=True)
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the page's servers serve by that name: the demo avatar in half its size.

    Nothing of the page depends on how large a picture is, and many browsers and servers share the
    machine.
    """
    made = made_once(tmp_path_factory, "half", "demo.lsa", write_half_demo)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(made.parent))
        yield made


@pytest.fixture(scope="session")
def served() -> Iterator[LocalServer]:
    """A server with the demo avatar, whose frames cost next to nothing: see ``QUICK``.

    It speaks texts, too, so that the page has all that it can have.
    """
    with speaks_texts() as speech, LocalServer({**CONFIG, **speech}, command=QUICK) as server:
        yield server


@pytest.fixture(scope="session")
def real(shared_server: Serve, demo: Path) -> LocalServer:
    """A server as users have it, that makes each frame."""
    return shared_server({**CONFIG, "avatars": {"folders": [str(demo.parent)]}})


@pytest.fixture
def tab(chrome: Browser) -> Page:
    """The tab, empty, without anything that was kept in it."""
    page = chrome.page
    page.open("about:blank")
    page.problems.clear()
    page.look(1280, 860)
    return page


@pytest.fixture
def page(tab: Page, served: LocalServer) -> Page:
    """The page, anew, with the avatar idling in it."""
    tab.open(served.http_url + "/")
    tab.until(IDLES)
    return tab
