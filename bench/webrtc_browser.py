# SPDX-License-Identifier: Apache-2.0
"""WebRTC in a real browser: what Chromium says of the pictures and the sound that it gets.

    python bench/webrtc_browser.py [--avatar demo] [--seconds 10] [--rounds 3] [--pages FOLDER]
        [--out FILE.json]

A server of this machine, and a headless Chromium beside it (Debian's: apt-get install chromium),
which opens the page that docs/integrations.md shows; with --pages, the index-en.html or index.html
of that folder as well, such as LiveTalking's, where its start() is called. The avatar rests, says
the shipped recording, and is interrupted. Figures are those of RTCPeerConnection.getStats, of each
phase by itself, medians over rounds; "gateway_cpu_ms" is its processor time for each picture that
was sent.

Sound and picture: what the browser estimates of both, when it is asked, as moments of the sender's
clock; "apart_ms" is by how much the sound is ahead.
"""

from __future__ import annotations

import base64
import io
import os
import re
import statistics
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np

from lipsync_fast.benchmark import program
from lipsync_fast.cli.demo import demo_recording
from lipsync_fast.client.local import LocalServer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "browser"))

from cdp import Page, browser  # noqa: E402

SPY = """
window.made = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...given) {
    super(...given);
    this.began = performance.now();
    made.push(this);
    this.addEventListener("track", ({ track }) => {
      if (track.kind !== "audio") return;
      const context = new AudioContext(), analyser = context.createAnalyser();
      analyser.fftSize = 512;
      context.createMediaStreamSource(new MediaStream([track])).connect(analyser);
      const samples = new Float32Array(analyser.fftSize);
      window.level = () => {
        analyser.getFloatTimeDomainData(samples);
        return Math.max(...samples.map(Math.abs));
      };
    });
  }
};
window.addEventListener("loadeddata", event => {
  if (event.target.videoWidth && !window.firstPicture) window.firstPicture = performance.now();
}, true);
const ask = window.fetch;
window.fetch = async (...given) => {
  const answer = await ask(...given);
  const place = answer.headers.get("Location");
  if (place) window.place = place;
  return answer;
};
"""
"""Keeps hold of what a page makes, without a change to it."""
STATS = """
(async () => {
  const found = {};
  for (const each of (await made.at(-1).getStats()).values())
    if (each.type === "inbound-rtp") found[each.kind] = each;
  return found;
})()
"""
ASK = """
(async () => {
  const session = typeof sessionid === "undefined" ? null : sessionid;
  const data = Uint8Array.from(atob("%(recording)s"), c => c.charCodeAt(0));
  const form = new FormData();
  if (session) {
    form.append("sessionid", session);
    form.append("file", new Blob([data]), "speech.wav");
  }
  const words = { method: "POST", body: JSON.stringify({ sessionid: session }) };
  const asked = %(interrupts)s
    ? session ? ["/interrupt_talk", words] : [`${place}/audio`, { method: "DELETE" }]
    : session
      ? ["/humanaudio", { method: "POST", body: form }]
      : [`${place}/audio`, { method: "POST", body: data }];
  const begun = performance.now();
  const answer = await fetch(...asked);
  if (!answer.ok) throw new Error(await answer.text());
  let since = 0;
  while (performance.now() - since < %(steady_ms)s || !since) {
    const reached = level() > %(loud)s !== %(interrupts)s;
    since = reached ? since || performance.now() : 0;
    await new Promise(done => setTimeout(done, 5));
  }
  return since - begun;
})()
"""
"""Has the recording said, or interrupted, by what the page's kind has for that; gives the
milliseconds until the sound that is played is loud, or stays quiet."""
STEADY_MS = 300
LOUD = 0.01
LOOK_S = 0.25


class Phase:
    """The figures of a phase."""

    def __init__(self, page: Page, gateway: int) -> None:
        self._page, self._gateway = page, gateway
        self._begun, self._before = time.monotonic(), page.value(STATS)
        self._cpu = cpu_s(gateway)
        self._apart: list[float] = []

    def last(self, seconds: float) -> dict[str, float]:
        """Look for so long; what happened meanwhile."""
        end = self._begun + seconds
        while time.monotonic() < end:
            time.sleep(LOOK_S)
            now = self._page.value(STATS)
            moments = [now[kind].get("estimatedPlayoutTimestamp") for kind in ("audio", "video")]
            if all(moments):
                self._apart.append(moments[0] - moments[1])
        return self._figures(self._page.value(STATS))

    def _figures(self, after: dict[str, Any]) -> dict[str, float]:
        took = time.monotonic() - self._begun

        def more(kind: str, name: str) -> float:
            return float(after[kind].get(name, 0) - self._before[kind].get(name, 0))

        def buffered(kind: str) -> float:
            emitted = more(kind, "jitterBufferEmittedCount")
            return 1e3 * more(kind, "jitterBufferDelay") / emitted if emitted else 0.0

        frames = more("video", "framesDecoded")
        return {
            "frames_s": frames / took,
            "frames_dropped": more("video", "framesDropped"),
            "freezes": more("video", "freezeCount"),
            "frozen_s": more("video", "totalFreezesDuration"),
            "key_frames": more("video", "keyFramesDecoded"),
            "picture_losses": more("video", "pliCount"),
            "packets_lost": more("video", "packetsLost") + more("audio", "packetsLost"),
            "picture_buffer_ms": buffered("video"),
            "sound_buffer_ms": buffered("audio"),
            "sound_concealed": more("audio", "concealedSamples")
            / max(1.0, more("audio", "totalSamplesReceived")),
            "picture_kbit_s": more("video", "bytesReceived") * 8 / took / 1e3,
            "sound_kbit_s": more("audio", "bytesReceived") * 8 / took / 1e3,
            "sound_energy": more("audio", "totalAudioEnergy"),
            "apart_ms": statistics.median(self._apart) if self._apart else float("nan"),
            "apart_most_ms": max(map(abs, self._apart), default=float("nan")),
            "gateway_cpu_ms": 1e3 * (cpu_s(self._gateway) - self._cpu) / max(1.0, frames),
        }


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def recipe(folder: Path) -> Path:
    """A folder with the page of the manual."""
    text = (ROOT / "docs" / "integrations.md").read_text()
    (block,) = re.findall(r"```text\n(<!doctype html>.*?)```", text, re.DOTALL)
    (folder / "index.html").write_text(block)
    return folder


def main() -> int:
    """Measure and print."""
    args = program.options(__doc__, avatar="demo", seconds=10.0, rounds=3, pages=None, out=None)
    load, rows, problems = round(os.getloadavg()[0], 1), {}, []
    with tempfile.TemporaryDirectory() as name:
        folders = {"the manual's page": recipe(Path(name))}
        if args.pages:
            folders[str(args.pages)] = args.pages
        for kind, folder in folders.items():
            rounds = []
            for number in range(args.rounds):
                found, noted = one_page(folder, args.avatar, args.seconds)
                rounds.append(found)
                problems += [text for text in noted if text not in problems]
                print(f"{kind}, round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
            rows[kind] = program.medians(rounds)
    for kind, phases in rows.items():
        for phase, row in phases.items():
            said = ", ".join(f"{key} {value:.3f}" for key, value in row.items())
            print(f"{kind}, {phase}: {said}")
    about = {"avatar": args.avatar, "rounds": args.rounds, "load": load}
    program.keep(args.out, **about, rows=rows, problems=problems)
    return 0


def one_page(pages: Path, avatar: str, seconds: float) -> tuple[dict[str, Any], list[str]]:
    """The rows of a folder's page, and what the browser's console said."""
    index = next(n for n in ("index-en.html", "index.html") if (pages / n).is_file())
    config = {
        "listen": {"webrtc_ports": [0]},
        "avatars": {"default": avatar},
        "webrtc": {"pages": str(pages)},
        "engines": {"spares": 0},
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalServer(config) as server,
        browser(Path(folder)) as started,
    ):
        while (gateway := server.status().gateways[0]).state != "ready":
            time.sleep(0.1)
        url = f"http://127.0.0.1:{gateway.ports['webrtc'][0]}"
        rows = watched(started.page, url, index, gateway.pid, seconds)
        noted = [text for text in started.page.problems if "favicon" not in text]
        return rows, noted


def watched(page: Page, url: str, index: str, gateway: int, seconds: float) -> dict[str, Any]:
    """The rows of all phases."""
    page.command("Page.addScriptToEvaluateOnNewDocument", source=SPY)
    page.open(f"{url}/{index}")
    if page.value("typeof start === 'function'"):
        page.value("start()")
    page.until("window.firstPicture")
    began = {"first_picture_ms": page.value("firstPicture - made.at(-1).began")}
    rows: dict[str, Any] = {"beginning": began}
    time.sleep(3.0)  # rest is encoded for the first time, and buffers are filled
    rows["at rest"] = Phase(page, gateway).last(seconds)
    rows["beginning"]["heard_ms"] = say(page)
    rows["speaking"] = Phase(page, gateway).last(seconds)
    page.until("level() < 0.001")
    say(page)
    time.sleep(1.0)
    rows["interruption"] = {"quiet_ms": page.value(ASK % asked("", STEADY_MS))}
    return rows


def say(page: Page) -> float:
    """Have the shipped recording said; milliseconds until it is heard, without its own silence."""
    data = demo_recording().read_bytes()
    with wave.open(io.BytesIO(data)) as file:
        rate, pcm = file.getframerate(), np.frombuffer(file.readframes(1 << 20), np.int16)
    silence_ms = 1e3 * float(np.argmax(np.abs(pcm) > LOUD * 32_768)) / rate
    told = asked(base64.b64encode(data).decode(), 0)
    return float(page.value(ASK % told)) - silence_ms


def asked(recording: str, steady_ms: int) -> dict[str, object]:
    """What the page is told to ask."""
    return {
        "recording": recording,
        "loud": LOUD,
        "interrupts": "false" if recording else "true",
        "steady_ms": steady_ms,
    }


if __name__ == "__main__":
    sys.exit(main())
