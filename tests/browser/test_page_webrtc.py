# SPDX-License-Identifier: Apache-2.0
"""The page that docs/integrations.md shows, as it stands there, in a real browser."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cdp import Page
from documents import blocks
from pages import ATTEMPTS, CONFIG, QUICK, let_microphone

from lipsync_fast.client.local import LocalServer

pytest.importorskip("aiortc", reason="the extra webrtc is not installed")
pytestmark = pytest.mark.clock
PATIENCE_S = 60.0
SPY = """
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...given) { super(...given); window.made = this; }
};
"""
STATS = """
(async () => {
  const found = {};
  for (const each of (await made.getStats()).values())
    if (each.type === "inbound-rtp") found[each.kind] = each;
  return found;
})()
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server that has the page of the manual."""
    folder = tmp_path_factory.mktemp("pages")
    (page,) = [b.text for b in blocks("text") if b.text.startswith("<!doctype html>")]
    (folder / "index.html").write_text(page)
    config: dict[str, Any] = CONFIG | {
        "listen": {"webrtc_ports": [0]},
        "webrtc": {"pages": str(folder)},
    }
    with LocalServer(config, command=QUICK) as server:
        until(lambda: server.status().gateways[0].state == "ready")
        yield server


def until(found: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_manuals_page_plays_hears_and_ends(tab: Page, served: LocalServer) -> None:
    (port,) = served.status().gateways[0].ports["webrtc"]
    url = f"http://127.0.0.1:{port}"
    let_microphone(tab, url, "granted")
    added = tab.command("Page.addScriptToEvaluateOnNewDocument", source=SPY)["identifier"]
    try:
        tab.open(f"{url}/")
        tab.until("face.videoWidth === 640 && face.currentTime > 0.2")
        for _ in range(ATTEMPTS):  # until the machine has time for all of it
            before = tab.value(STATS)["video"]
            time.sleep(3.0)
            after = tab.value(STATS)["video"]
            frames = after["framesDecoded"] - before["framesDecoded"]
            freezes = after["freezeCount"] - before["freezeCount"]
            if frames > 40 and freezes == 0:
                break
        assert frames > 40
        assert freezes == 0
        # The browser's own microphone beeps; the avatar says that.
        tab.click("#speak")
        until(lambda: served.status().fronts[0].load.speaking == 1)
        tab.until(f"({STATS.strip().rstrip(';')}).then(found => found.audio.audioLevel > 0.01)")
        assert not [p for p in tab.problems if "favicon" not in p]
    finally:
        tab.command("Page.removeScriptToEvaluateOnNewDocument", identifier=added)
        let_microphone(tab, url, "prompt")
        tab.open("about:blank")
    until(lambda: served.status().fronts[0].load.sessions == 0)
    until(lambda: served.status().gateways[0].load.calls["webrtc"] == 0)  # it is told now and then
