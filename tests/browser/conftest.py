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

from lipsync_fast.avatars.library import VARIABLE, shipped_folder
from lipsync_fast.client.local import LocalServer


@pytest.fixture(scope="session")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser; skips where there is none."""
    if chromium() is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo avatar in half its size: what the page's servers serve by its name.

    Nothing of the page depends on how large a picture is, and many browsers and servers share the
    machine.
    """
    return made_once(tmp_path_factory, "half", "demo.lsa", write_half_demo)


@pytest.fixture(scope="module", autouse=True)
def in_half_size(demo: Path) -> Iterator[None]:
    """Servers of the tests of the page alone find it; those of the whole session are told of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(demo.parent))
        yield


@pytest.fixture(scope="session")
def served(demo: Path) -> Iterator[LocalServer]:
    """A server with the demo avatar, whose frames cost next to nothing: see ``QUICK``.

    It speaks texts, too, so that the page has all that it can have.
    """
    with speaks_texts() as speech:
        config = {**CONFIG, **speech, "avatars": {"folders": [str(demo.parent)]}}
        with LocalServer(config, command=QUICK) as server:
            yield server


@pytest.fixture(scope="session")
def real(shared_server: Serve) -> LocalServer:
    """A server as users have it, that makes each frame, in its own size."""
    return shared_server({**CONFIG, "avatars": {"folders": [str(shipped_folder())]}})


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
