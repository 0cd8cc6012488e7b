# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, against a real server."""

from __future__ import annotations

import os
import socket
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cdp import Browser, Page, browser, chromium
from talking import ALONE, GUARDED, ONE_SPEAKER, Serve
from websockets.sync.client import connect
from websockets.typing import Subprotocol

import lipsync_fast
from lipsync_fast.client.local import LocalServer

pytestmark = pytest.mark.clock

CONFIG = {"live": {"margin_ms": 400.0, "speakers": 2}, "engines": ALONE}
"""Time enough for the frames, also where tests of other kinds keep the machine busy."""
ATTEMPTS = 4
IN_STEP_MS = 40.0
"""How far picture and sound may be apart."""
WATCH = """
(() => {
  // At each frame drawn: what its mouth looks like, small and grey, and how loud the sound is.
  const [x, y, w, h] = lipsync.started.bounds;
  const from = [x + w * 0.3, y + h * 0.26, w * 0.4, h * 0.26].map(Math.round);
  const small = new OffscreenCanvas(32, 24).getContext("2d", { willReadFrequently: true });
  const watch = (window.watch = { mouths: [], states: [] });
  let drawn = lipsync.metrics.drawn;
  const look = () => {
    if (window.watch === watch) requestAnimationFrame(look);
    if (lipsync.metrics.drawn === drawn) return;
    drawn = lipsync.metrics.drawn;
    small.drawImage(document.getElementById("canvas"), ...from, 0, 0, 32, 24);
    const { data } = small.getImageData(0, 0, 32, 24);
    watch.mouths.push(Array.from({ length: 768 }, (_, i) => data[4 * i] + data[4 * i + 1]));
    watch.states.push(lipsync.metrics.spokenDrawn);
  };
  requestAnimationFrame(look);
})()
"""


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The browser; skips where there is none."""
    if chromium() is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def served() -> Iterator[LocalServer]:
    """A server with the demo avatar."""
    with LocalServer(CONFIG) as server:
        yield server


@pytest.fixture
def page(chrome: Browser, served: LocalServer) -> Page:
    """The page, anew, with the avatar idling in it."""
    page = chrome.page
    page.open("about:blank")
    page.problems.clear()
    page.look(1280, 860)
    page.open(served.http_url + "/")
    page.until("window.lipsync?.state === 'idle' && lipsync.metrics.drawn > 5")
    return page


def metrics(page: Page) -> dict[str, Any]:
    """What the page has measured."""
    names = "drawn spokenDrawn skipped lost serverSkipped soundGaps bufferMs latencyMs"
    fields = ", ".join(f"{name}: lipsync.metrics.{name}" for name in names.split())
    return dict(page.value(f"({{{fields}, sync: lipsync.metrics.sync()}})"))


def speak_sample(page: Page, frames: int) -> dict[str, Any]:
    """Play the sample until so many of its frames were shown, all in step, and it is over.

    Again where the machine was too busy for that: how fast it is is not asked here.
    """
    seen = []
    for _ in range(ATTEMPTS):
        page.value("lipsync.metrics.offsets.length = 0")
        page.value("watch.mouths.length = watch.states.length = 0")
        page.until("watch.mouths.length > 25")
        before = metrics(page)["spokenDrawn"]
        page.click("#sample")
        page.until("lipsync.state === 'speaking'")
        assert page.value("document.querySelector('#state-text').textContent") == "Speaking."
        stopped(page)
        seen.append(metrics(page))
        if seen[-1]["spokenDrawn"] - before >= frames and seen[-1]["sync"]["worst"] < IN_STEP_MS:
            return seen[-1]
    if all(abs(metric["sync"]["median"]) < IN_STEP_MS / 2 for metric in seen):
        skip_where_busy()  # a frame now and then may be out of step there, not most of them
    raise AssertionError(("too few frames, or out of step, each time", seen, page.problems))


def begin_sample(page: Page, frames: int) -> None:
    """Play the sample, and wait until so many of its frames have been shown; see above."""
    for _ in range(ATTEMPTS):
        wanted = page.value("lipsync.metrics.spokenDrawn") + frames
        page.click("#sample")
        page.until("lipsync.state === 'speaking'")
        page.until(f"lipsync.metrics.spokenDrawn >= {wanted} || lipsync.state === 'idle'")
        if page.value("lipsync.state") == "speaking":
            return
    skip_where_busy()
    raise AssertionError((frames, metrics(page), page.problems))


def processor_ticks() -> tuple[int, int]:
    """All of the processors' time since the machine began, and what of it other machines took."""
    ticks = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks), ticks[7]


BEGUN = processor_ticks()


def skip_where_busy() -> None:
    """Frames did not come in time: where others keep the machine busy, that says nothing.

    They may do so within it, or beside it on the same host, which takes its processors away.
    """
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 2 * cores:
        pytest.skip(f"too busy for frames in time: load {load:.1f} on {cores} cores")
    everything, stolen = (now - then for now, then in zip(processor_ticks(), BEGUN, strict=True))
    if stolen > 0.03 * everything:
        share = 100 * stolen / everything
        pytest.skip(f"too busy for frames in time: the host takes {share:.0f}% of the processors")


def stopped(page: Page) -> None:
    """Wait until it idles, with the mouth on its way back closed."""
    page.until("lipsync.state === 'idle'")
    page.until(f"lipsync.metrics.drawn > {page.value('lipsync.metrics.drawn')} + 20")


def watched(page: Page) -> tuple[np.ndarray, np.ndarray]:
    """Mouths (frames x pixels) that were watched, and whether each was spoken."""
    mouths, spoken = page.value("[watch.mouths, watch.states]")
    page.value("window.watch = null")
    return np.array(mouths, float) / 2, np.diff(spoken, prepend=spoken[0]) > 0


def changes(mouths: np.ndarray) -> np.ndarray:
    """How much each mouth differs from the one before, mean grey levels."""
    return np.abs(np.diff(mouths, axis=0)).mean(axis=1)


def test_idles_without_complaints(page: Page) -> None:
    page.value(WATCH)
    page.until("watch.mouths.length > 60")
    mouths, spoken = watched(page)
    assert not spoken.any()
    moved = changes(mouths)
    assert 0 < moved.max() < 4  # it lives, and does not jump
    whole = page.value("[canvas.width, canvas.height]")
    assert whole == [1280, 720]
    assert page.value("document.querySelector('#avatars input:checked').value") == "demo"
    assert page.value("document.querySelector('#avatars img').naturalWidth") > 0
    assert page.value("document.querySelector('#stop').disabled")
    assert page.problems == []


def test_the_sample_moves_the_mouth_in_step_with_the_sound(page: Page) -> None:
    page.value(WATCH)
    measured = speak_sample(page, 235)
    mouths, spoken = watched(page)
    assert page.problems == []
    assert measured["sync"]["count"] >= 200, measured
    assert abs(measured["sync"]["median"]) < IN_STEP_MS / 2, measured

    moved = changes(mouths)
    speech = moved[np.flatnonzero(spoken[1:])]
    rest = moved[np.flatnonzero(~spoken[1:])]
    assert np.percentile(speech, 75) > 2 * np.percentile(rest, 75), (speech, rest)
    resting = darkness(mouths[:20]).mean()
    loud, quiet = by_loudness(darkness(mouths[spoken]))
    assert loud - resting > 20
    # In the sound's pauses it rests, nearly as it does when nobody speaks.
    if abs(quiet - resting) >= (loud - resting) / 4:
        skip_where_busy()
    assert abs(quiet - resting) < (loud - resting) / 4, (loud, quiet, resting)


def darkness(mouths: np.ndarray) -> np.ndarray:
    """How dark the darkest part of each mouth is: an open one is dark inside."""
    return 255 - np.sort(mouths, axis=1)[:, :30].mean(axis=1)


def by_loudness(shown: np.ndarray) -> tuple[float, float]:
    """Means of what the spoken frames showed: in the recording's loud and in its silent parts."""
    path = Path(lipsync_fast.__file__).parent / "data" / "demo" / "speech.wav"
    with wave.open(str(path)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)
    count = min(len(shown), len(pcm) // 640)
    level = np.sqrt((pcm[: count * 640].reshape(count, 640) ** 2).mean(axis=1))
    # Silent also just before and after: the mouth moves ahead of the voice. A few frames may be
    # missing, which shifts the rest by as much.
    near = np.array([level[max(0, i - 6) : i + 7].max() for i in range(count)])
    silent = near < 0.02 * level.max()
    assert silent.any()
    return float(shown[:count][level > np.median(level)].mean()), float(
        shown[:count][silent].mean()
    )


def test_stop_interrupts_and_the_next_utterance_is_in_step(page: Page) -> None:
    begin_sample(page, 40)
    page.press("Escape", 27)
    page.until("lipsync.state === 'idle'")
    shown = page.value("lipsync.metrics.spokenDrawn")
    page.until(f"lipsync.metrics.drawn > {page.value('lipsync.metrics.drawn')} + 25")
    assert page.value("lipsync.metrics.spokenDrawn") == shown
    begin_sample(page, 50)
    page.click("#stop")
    page.until("lipsync.state === 'idle'")
    assert abs(metrics(page)["sync"]["median"]) < IN_STEP_MS
    assert page.problems == []


def let_microphone(page: Page, served: LocalServer, setting: str) -> None:
    """As if answered in the browser's dialog."""
    where = {"permission": {"name": "microphone"}, "origin": served.http_url}
    page.command("Browser.setPermission", **where, setting=setting)


def test_the_microphone_is_heard(page: Page, served: LocalServer) -> None:
    """Chromium's own microphone beeps once a second."""
    let_microphone(page, served, "granted")
    page.click("#mic")
    page.until("lipsync.state === 'listening' || lipsync.state === 'hearing'")
    page.until("lipsync.metrics.spokenDrawn > 10")
    assert page.value("document.querySelector('#mic').ariaPressed") == "true"
    page.click("#mic")
    stopped(page)
    assert abs(metrics(page)["sync"]["median"]) < IN_STEP_MS
    assert page.problems == []


def test_a_file_that_is_no_sound_has_a_sentence(page: Page, tmp_path: Path) -> None:
    bad = tmp_path / "notes.txt"
    bad.write_text("no sound at all")
    choose_file(page, bad)
    page.until("!document.querySelector('#notice').hidden")
    said = page.value("document.querySelector('#notice-text').textContent")
    assert "notes.txt" in said
    assert page.value("document.querySelector('#notice-action').textContent") == "Open another"
    assert page.value("lipsync.state") == "idle"
    assert page.problems == []


def test_a_file_is_spoken(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    tone = 9000 * np.sin(np.arange(44_100) * 0.03) * (np.sin(np.arange(44_100) * 4e-4) > 0)
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 44_100, 0, "NONE", ""))
        file.writeframes(np.repeat(tone.astype("<i2"), 2).tobytes())
    for _ in range(ATTEMPTS):
        choose_file(page, path)
        page.until("lipsync.state === 'speaking'")
        stopped(page)
        if page.value("lipsync.metrics.spokenDrawn") >= 20:
            break
    assert metrics(page)["sync"]["count"] >= 20
    assert abs(metrics(page)["sync"]["median"]) < IN_STEP_MS
    assert page.problems == []


def choose_file(page: Page, path: Path) -> None:
    """As if picked in the dialog."""
    root = page.command("DOM.getDocument")["root"]["nodeId"]
    node = page.command("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.command("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def test_an_unknown_avatar_is_told_and_replaced(page: Page, served: LocalServer) -> None:
    page.open(served.http_url + "/?avatar=nobody")
    page.until("window.lipsync?.state === 'idle' && lipsync.metrics.drawn > 5")
    said = page.value("document.querySelector('#notice-text').textContent")
    assert "nobody" in said
    assert page.value("lipsync.started.avatar") == "demo"
    assert page.problems == []


def test_works_by_keyboard(page: Page) -> None:
    page.value("document.getElementById('sample').focus()")
    page.press("Enter", 13)
    page.until("lipsync.state === 'speaking'")
    page.press("Escape", 27)
    page.until("lipsync.state === 'idle'")
    reached = []
    page.value("document.querySelector('.skip').focus()")
    for _ in range(5):
        page.press("Tab", 9)
        reached.append(page.value("document.activeElement.id || document.activeElement.name"))
    assert reached == ["sample", "mic", "open", "mute", "avatar"]


@pytest.mark.parametrize(("width", "height"), [(360, 740), (768, 1024), (1440, 900)])
def test_fits_every_width(page: Page, width: int, height: int) -> None:
    page.look(width, height, phone=width < 500)
    assert page.value("document.documentElement.scrollWidth") <= width
    seen = page.value(
        "[...document.querySelectorAll('.controls button')].map((b) => {"
        " const r = b.getBoundingClientRect(); return [r.left, r.right, r.height] })"
    )
    assert all(left >= 0 and right <= width and tall >= 40 for left, right, tall in seen), seen


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago, for a server that comes back to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_comes_back_after_the_server(chrome: Browser, port: int) -> None:
    page = chrome.page
    config = CONFIG | {"listen": {"http_port": port}}
    page.open("about:blank")
    page.problems.clear()
    with LocalServer(config) as server:
        page.open(server.http_url + "/")
        page.until("window.lipsync?.state === 'idle' && lipsync.metrics.drawn > 5")
        begin_sample(page, 5)
    page.until("lipsync.state === 'waiting' && !document.querySelector('#notice').hidden")
    said = page.value("document.querySelector('#notice-text').textContent")
    assert said.startswith("The server"), said
    assert page.value("document.querySelector('#notice').role") == "alert"
    assert page.value("document.querySelector('#sample').disabled")
    before = page.value("lipsync.metrics.drawn")
    with LocalServer(config):
        page.until(f"lipsync.state === 'idle' && lipsync.metrics.drawn > {before} + 5")
        assert page.value("document.querySelector('#notice').hidden")
    # Nothing but what the browser itself says of a server that is not there.
    assert all("network error" in p or "WebSocket" in p for p in page.problems), page.problems


def test_a_token_is_asked_for(chrome: Browser, shared_server: Serve) -> None:
    page = chrome.page
    server = shared_server(GUARDED)
    page.open(server.http_url + "/")
    page.until("!document.querySelector('#token-form').hidden")
    assert "token" in page.value("document.querySelector('#notice-text').textContent")
    page.value("token.value = 'open sesame'; document.querySelector('#token-form').requestSubmit()")
    page.until("lipsync.state === 'idle' && lipsync.metrics.drawn > 5")
    page.until("document.querySelector('#avatars img')?.naturalWidth > 0")
    page.open(f"{server.http_url}/?token=open%20sesame")
    page.until("window.lipsync?.state === 'idle' && lipsync.metrics.drawn > 5")
    page.open("about:blank")


def test_choosing_an_avatar(chrome: Browser, tiny_avatar: Path) -> None:
    page = chrome.page
    with LocalServer(CONFIG | {"avatars": {"folders": [str(tiny_avatar.parent)]}}) as server:
        page.open("about:blank")
        page.problems.clear()
        page.open(server.http_url + "/")
        page.until("window.lipsync?.state === 'idle' && lipsync.metrics.drawn > 5")
        page.until("document.querySelectorAll('#avatars img').length === 2")
        page.click("#avatars input[value=tiny]")
        page.until("lipsync.started.avatar === 'tiny' && canvas.width === 160")
        page.value("document.querySelector('#avatars input:checked').focus()")
        page.press("ArrowLeft", 37)
        page.until("lipsync.started.avatar === 'demo' && canvas.width === 1280")
        page.until("document.querySelector('#avatars input:checked').value === 'demo'")
    assert [p for p in page.problems if "WebSocket" not in p] == []


def test_a_microphone_that_is_not_allowed_has_a_sentence(page: Page, served: LocalServer) -> None:
    let_microphone(page, served, "denied")
    page.click("#mic")
    page.until("!document.querySelector('#notice').hidden")
    assert "not allowed" in page.value("document.querySelector('#notice-text').textContent")
    assert page.value("document.querySelector('#notice-action').textContent") == "Open a file"
    assert page.value("lipsync.state") == "idle"
    page.click("#notice-close")
    assert page.value("document.querySelector('#notice').hidden")


def test_a_full_server_is_told_and_waited_for(chrome: Browser) -> None:
    page = chrome.page
    with LocalServer(CONFIG | {"limits": {"sessions": 1}}) as server:
        with connect(server.url, subprotocols=[Subprotocol("lipsync.v1")]) as other:
            other.send('{"type": "session.start", "idle": false}')
            assert "session.started" in str(other.recv())
            page.open(server.http_url + "/")
            page.until("window.lipsync?.state === 'waiting'")
            page.until("document.querySelector('#notice').dataset.word === 'full'")
        page.until("lipsync.state === 'idle' && lipsync.metrics.drawn > 5")
        assert page.value("document.querySelector('#notice').hidden")
    page.open("about:blank")


def test_too_many_speakers_have_a_sentence(chrome: Browser, shared_server: Serve) -> None:
    page, server = chrome.page, shared_server(ONE_SPEAKER)
    with connect(server.url, subprotocols=[Subprotocol("lipsync.v1")]) as other:
        other.send('{"type": "session.start", "idle": false}')
        other.send(bytes(3200))  # never ended: it keeps the place
        page.open(server.http_url + "/")
        page.until("window.lipsync?.state === 'idle' && lipsync.metrics.drawn > 5")
        page.click("#sample")
        page.until("document.querySelector('#notice').dataset.word === 'overloaded'")
        page.until("lipsync.state === 'idle'")
        other.send('{"type": "session.interrupt"}')
        while "session.interrupted" not in str(other.recv()):
            pass
        page.click("#notice-action")
        page.until("lipsync.metrics.spokenDrawn > 0")
        page.click("#stop")
    page.open("about:blank")
