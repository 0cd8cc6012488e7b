# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: pictures as a stream of H.264 against JPEGs.

    python bench/page.py [--avatar demo] [--seconds 20] [--out bench/results/page.json]

A server of this machine, and a headless Chromium beside it (Debian's: apt-get install chromium), in
which the page rests, and then says the sample again and again for so long: with the stream that it
takes by itself, and with ``?codec=jpeg``. No frame is kept for the next time. Figures are the
page's own (``window.lipsync.metrics``): pictures drawn a second, those dropped anywhere, how far
from its sound each spoken one was drawn (the 95th percentile without the sign), bits of pictures,
sound and messages, and the median from a voice to its picture. Processor time is that of the
server's processes, of Chromium's renderer, which decodes and draws, and of all of Chromium, seconds
for each second.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.processes import pids, usage
from lipsync_fast.client.local import LocalServer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from cdp import Browser, Page, browser  # noqa: E402 (found by the line above)

PAGES = {"H.264": "h264", "JPEG": "jpeg"}
WARM_S = 5.0
"""Before anything is measured: rest is encoded for the first time, and the buffer is filled."""
LOOK_S = 0.1
STATE = """
(() => {
  const m = lipsync.metrics, { offsets } = m;
  m.offsets = [];
  const { drawn, spokenDrawn, dropped, received, latencyMs, bufferMs } = m;
  return { drawn, spokenDrawn, dropped, received, latencyMs, bufferMs, offsets,
    now: performance.now(), idle: lipsync.state === "idle" };
})()
"""


class Processes:
    """Processor time that the server and the browser have used, by whom."""

    def __init__(self, server: LocalServer, chrome: Browser) -> None:
        self._server, self._chrome = server, chrome

    def cpu_s(self) -> dict[str, float]:
        """Until now, seconds."""
        server = pids(self._server.status()).values()
        chrome = dict(group(self._chrome.pid))
        renderers = [pid for pid, command in chrome.items() if "--type=renderer" in command]
        found = {"server": server, "renderer": renderers, "chromium": chrome}
        return {name: sum(used(pid) for pid in of) for name, of in found.items()}


def used(pid: int) -> float:
    """Seconds of processor time; 0 of a process that has gone."""
    found = usage(pid)
    return found.cpu_s if found else 0.0


def group(leader: int) -> list[tuple[int, str]]:
    """The processes of a group, and their command lines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(folder.name)
            if os.getpgid(pid) == leader:
                found.append((pid, (folder / "cmdline").read_text().replace("\0", " ")))
    return found


def phase(page: Page, processes: Processes, seconds: float, speaks: bool) -> dict[str, float]:
    """Rest, or say the sample again and again, for so long; what happened."""
    if speaks:
        page.click("#sample")
        page.until("lipsync.metrics.spokenDrawn > 0")
    before, cpu, offsets = page.value(STATE), processes.cpu_s(), list[float]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(LOOK_S)
        now = page.value(STATE)
        offsets += now["offsets"]
        if speaks and now["idle"]:
            page.click("#sample")
            page.until("lipsync.state === 'speaking'")
    after, took = page.value(STATE), processes.cpu_s()
    offsets += after["offsets"]
    length = (after["now"] - before["now"]) / 1e3
    row = {
        "fps": (after["drawn"] - before["drawn"]) / length,
        "dropped": float(after["dropped"] - before["dropped"]),
        "kbit_s": (after["received"] - before["received"]) * 8 / length / 1e3,
        "buffer_ms": after["bufferMs"],
        **{f"{name}_cpu": (took[name] - cpu[name]) / length for name in cpu},
    }
    if speaks:
        row |= {
            "spoken": float(after["spokenDrawn"] - before["spokenDrawn"]),
            "latency_ms": after["latencyMs"],
            "sync_ms": statistics.median(offsets),
            "sync_p95_ms": float(np.percentile(np.abs(offsets), 95)),
        }
    if speaks:
        page.click("#stop")
    return row


def main() -> int:
    """Measure and print."""
    args = program.options(__doc__, avatar="demo", seconds=20.0, out=None)
    config = {"avatars": {"default": args.avatar}, "utterances": {"disk_mb": 0}}
    load, rows = round(os.getloadavg()[0], 1), dict[str, dict[str, dict[str, float]]]()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalServer(config) as server,
        browser(Path(folder)) as chrome,
    ):
        page, processes = chrome.page, Processes(server, chrome)
        page.look(1280, 860)
        for name, codec in PAGES.items():
            page.open(f"{server.http_url}/?codec={codec}")
            page.until("window.lipsync?.state === 'idle' && lipsync.metrics.drawn > 5")
            if page.value("lipsync.codec") != codec:
                raise SystemExit(f"the page shows {page.value('lipsync.codec')}, not {codec}")
            time.sleep(WARM_S)
            rows[name] = {
                "at rest": phase(page, processes, args.seconds, False),
                "speaking": phase(page, processes, args.seconds, True),
            }
        version = page.command("Browser.getVersion")["product"]
    for name, phases in rows.items():
        for what, row in phases.items():
            said = ", ".join(f"{key} {value:.2f}" for key, value in row.items())
            print(f"{name}, {what}: {said}")
    loads = [load, round(os.getloadavg()[0], 1)]
    about = {"avatar": args.avatar, "seconds": args.seconds, "browser": version, "load": loads}
    program.keep(args.out, **about, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
