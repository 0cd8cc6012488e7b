# SPDX-License-Identifier: Apache-2.0
"""What tests of the page have in common: what it says, what it shows, how it is made to speak."""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from cdp import Page
from talking import ALONE

CONFIG: dict[str, Any] = {
    "live": {"margin_ms": 400.0, "speakers": 2, "half_rate": False},
    "engines": ALONE,
    "drain_seconds": 0.5,
}
"""Time enough for the frames, also where tests of other kinds keep the machine busy."""
QUICK = (sys.executable, "-P", str(Path(__file__).with_name("quick_server.py")), "serve")
"""The command of a server whose frames cost next to nothing: where time is what a test is about."""
JPEGS_ONLY = (*QUICK[:-1], "serve-jpegs")
"""The same without an encoder of H.264."""
CODECS = ["h264", "jpeg"]
IDLES = "window.lipsync?.state === 'idle' && lipsync.metrics.drawn > 5"
ATTEMPTS = 4
IN_STEP_MS = 40.0
"""How far picture and sound may be apart."""
SIZES = [(390, 844), (844, 390), (1280, 860)]
"""A phone, one on its side, a desk."""
WATCH = """
(() => {
  // At each frame drawn: what its mouth looks like, small and grey, and which frame it is.
  const [x, y, w, h] = lipsync.started.bounds;
  const from = [x + w * 0.3, y + h * 0.26, w * 0.4, h * 0.26].map(Math.round);
  const small = new OffscreenCanvas(32, 24).getContext("2d", { willReadFrequently: true });
  const watch = (window.watch = { mouths: [], frames: [] });
  let drawn = lipsync.metrics.drawn;
  const look = () => {
    if (window.watch === watch) requestAnimationFrame(look);
    if (lipsync.metrics.drawn === drawn) return;
    drawn = lipsync.metrics.drawn;
    small.drawImage(document.getElementById("canvas"), ...from, 0, 0, 32, 24);
    const { data } = small.getImageData(0, 0, 32, 24);
    watch.mouths.push(Array.from({ length: 768 }, (_, i) => data[4 * i] + data[4 * i + 1]));
    watch.frames.push(lipsync.metrics.spokenFrame);
  };
  requestAnimationFrame(look);
})()
"""


def metrics(page: Page) -> dict[str, Any]:
    """What the page has measured."""
    names = "drawn spokenDrawn skipped lost serverSkipped soundGaps bufferMs excessMs latencyMs"
    fields = ", ".join(f"{name}: lipsync.metrics.{name}" for name in names.split())
    return dict(page.value(f"({{{fields}, sync: lipsync.metrics.sync()}})"))


def begin_sample(page: Page, frames: int) -> None:
    """Play the sample, and wait until so many of its frames have been shown.

    Again where the machine was too busy for that: how fast it is is not asked here.
    """
    for _ in range(ATTEMPTS):
        wanted = page.value("lipsync.metrics.spokenDrawn") + frames
        page.click("#sample")
        page.until("lipsync.state === 'speaking'")
        page.until(f"lipsync.metrics.spokenDrawn >= {wanted} || lipsync.state === 'idle'")
        if page.value("lipsync.state") == "speaking":
            return
    raise AssertionError((frames, metrics(page), page.problems))


def stopped(page: Page) -> None:
    """Wait until it idles, with the mouth on its way back closed."""
    page.until("lipsync.state === 'idle'")
    page.until(f"lipsync.metrics.drawn > {page.value('lipsync.metrics.drawn')} + 20")


def said(page: Page) -> str:
    """The sentence of the notice that is shown; waits for one."""
    page.until("!document.querySelector('#notice').hidden")
    return str(page.value("document.querySelector('#notice-text').textContent"))


def open_page(page: Page, url: str, codec: str = "h264") -> None:
    """Open the page, with pictures of that form, and wait until the avatar idles in it."""
    page.open(f"{url}/?codec={codec}")
    page.until(IDLES)
    assert page.value("lipsync.codec") == codec


def hide(page: Page, hidden: bool) -> None:
    """As if another tab were looked at."""
    page.value(
        f"Object.defineProperty(document, 'hidden', {{ value: {str(hidden).lower()},"
        " configurable: true }); document.dispatchEvent(new Event('visibilitychange'))"
    )


def is_hidden(page: Page, selector: str) -> bool:
    return bool(page.value(f"document.querySelector({json.dumps(selector)}).hidden"))


def let_microphone(page: Page, origin: str, setting: str) -> None:
    """As if answered in the browser's dialog."""
    permission = {"permission": {"name": "microphone"}, "origin": origin}
    page.command("Browser.setPermission", **permission, setting=setting)


def watched(page: Page) -> tuple[np.ndarray, np.ndarray]:
    """Mouths (frames x pixels) that were watched, and which frame of the utterance each was, -1
    for none."""
    mouths, frames = page.value("[watch.mouths, watch.frames]")
    page.value("window.watch = null")
    return np.array(mouths, float) / 2, np.array(frames)


@contextmanager
def before_the_page(page: Page, script: str) -> Iterator[None]:
    """Run a script in each document before its own do."""
    told = page.command("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        yield
    finally:
        page.command("Page.removeScriptToEvaluateOnNewDocument", **told)


class Relay:
    """Passes connections on to a port of this machine, and can hold up what comes back.

    What is held up is kept, as a network does: nobody notices but by the time.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._flows = threading.Event()
        self._flows.set()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self, seconds: float) -> None:
        """Let nothing through for so long, from now on."""
        self._flows.clear()
        timer = threading.Timer(seconds, self._flows.set)
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        """End all connections."""
        self._flows.set()
        for each in [self._listener, *self._sockets]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                for each in (near, far):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [near, far]
                threading.Thread(target=self._pass, args=(near, far), daemon=True).start()
                threading.Thread(target=self._pass_back, args=(far, near), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def _pass_back(self, source: socket.socket, target: socket.socket) -> None:
        """Reads on while nothing flows, so that the server notices no slow reader."""
        held = bytearray()
        with suppress(OSError, ValueError):
            while True:
                if select.select([source], [], [], 0.01)[0]:
                    data = source.recv(1 << 18)
                    if not data:
                        break
                    held += data
                if held and self._flows.is_set():
                    target.sendall(held)
                    held.clear()
            target.sendall(held)
            target.shutdown(socket.SHUT_WR)


@contextmanager
def relay(port: int) -> Iterator[Relay]:
    """A relay that is ended behind the block."""
    made = Relay(port)
    try:
        yield made
    finally:
        made.close()
