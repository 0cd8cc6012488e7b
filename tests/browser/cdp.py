# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, spoken to by the DevTools protocol; as little of it as the tests need."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from lipsync_fast.client.local import Tether

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP app.example.org 127.0.0.1",  # a name that is no loopback one
)
DEADLINE_S = 60.0


def chromium() -> str | None:
    """Where a Chromium is installed; None where none is."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A Chromium process with one page, and what its console said."""

    def __init__(self, folder: Path, *flags: str) -> None:
        executable = chromium()
        assert executable is not None
        self._left = contextlib.ExitStack()
        self._log = (folder / "chromium.log").open("wb")
        data = folder / "profile"
        self._process = subprocess.Popen(
            [executable, *FLAGS, *flags, f"--user-data-dir={data}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=os.environ | {"HOME": str(folder)},
            start_new_session=True,
        )
        self._tether = Tether(self._process.pid, data)  # tests that are killed leave none
        try:
            port = int(_wait_for_file(data / "DevToolsActivePort", self._process).split()[0])
            self.page = Page(self._left.enter_context(_page_of(port)))
        except BaseException:
            self._kill()
            raise

    @property
    def pid(self) -> int:
        """Of its first process, whose group all of them are."""
        return self._process.pid

    def close(self) -> None:
        """End it, with all its processes."""
        with contextlib.suppress(Exception):
            self._left.close()
        self._kill()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._tether.close()
        self._log.close()


def _wait_for_file(path: Path, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if (text := path.read_text()).count("\n"):
                return text
        time.sleep(0.05)
    raise AssertionError("Chromium did not start; see chromium.log")


def _page_of(port: int) -> AbstractContextManager[ClientConnection]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as answer:
        targets = json.load(answer)
    url = next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page")
    return connect(url, max_size=None, compression=None, ping_interval=None)


class Page:
    """A tab: commands, evaluation, and the problems that its console told of."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.problems: list[str] = []
        """Errors and warnings of the console, refused resources, exceptions that nobody caught."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Do something; what it answers."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._connection.recv(timeout=DEADLINE_S))
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        told = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            text = details.get("exception", {}).get("description", details["text"])
            self.problems.append(f"exception: {text}")
        elif event.get("method") == "Runtime.consoleAPICalled":
            if told["type"] in ("error", "warning", "assert"):
                said = [str(a.get("value", a.get("description"))) for a in told["args"]]
                self.problems.append(f"console.{told['type']}: {' '.join(said)}")
        elif event.get("method") == "Log.entryAdded":
            entry = told["entry"]
            if entry["level"] in ("error", "warning"):
                where = entry.get("url", "")
                self.problems.append(f"{entry['source']} {entry['level']}: {entry['text']} {where}")

    def open(self, url: str) -> None:
        """Go to an address."""
        answer = self.command("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        self.until("document.readyState === 'complete'")

    def value(self, expression: str, gesture: bool = False) -> Any:
        """What a JavaScript expression gives; promises are waited for."""
        answer = self.command(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=gesture,
        )
        assert "exceptionDetails" not in answer, (expression, answer["exceptionDetails"])
        return answer["result"].get("value")

    def until(self, expression: str, deadline_s: float = DEADLINE_S) -> Any:
        """Wait until an expression is true.

        Raises:
            AssertionError: it has not become so.
        """
        end = time.monotonic() + deadline_s
        while True:
            value = self.value(expression)
            if value:
                return value
            assert time.monotonic() < end, (expression, self.state(), self.problems)
            time.sleep(0.05)

    def state(self) -> str:
        """What the page says of itself."""
        return str(self.value("document.body ? document.body.innerText : ''"))

    def click(self, selector: str) -> None:
        """Press something with the mouse, where it is on the screen."""
        spot = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', behavior: 'instant'});"
            " const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            x, y = spot
            self.command(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    def press(self, key: str, code: int) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            self.command(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}),
            )

    def look(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Take a size and a colour scheme."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Write a PNG of what is seen."""
        data = self.command("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browser(folder: Path, *flags: str) -> Iterator[Browser]:
    """A Chromium that is ended behind the block."""
    started = Browser(folder, *flags)
    try:
        yield started
    finally:
        started.close()
