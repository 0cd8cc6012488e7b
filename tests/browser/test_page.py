# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, against a real server."""

from __future__ import annotations

import json
import socket
import wave
from pathlib import Path

import numpy as np
import pytest
from cdp import Page
from pages import (
    ATTEMPTS,
    CODECS,
    CONFIG,
    IDLES,
    IN_STEP_MS,
    QUICK,
    WATCH,
    begin_sample,
    is_hidden,
    let_microphone,
    metrics,
    open_page,
    said,
    stopped,
    watched,
)
from quick_server import SAMPLE_S
from websockets.sync.client import connect
from websockets.typing import Subprotocol

import lipsync_fast
from lipsync_fast.client.local import LocalServer

pytestmark = pytest.mark.clock

SAMPLE_FRAMES = 254
FIRST_FRAMES = 25 * SAMPLE_S
"""Of the server's whose networks run once: see ``quick_server``."""


def changes(mouths: np.ndarray) -> np.ndarray:
    """How much each mouth differs from the one before, mean grey levels."""
    return np.abs(np.diff(mouths, axis=0)).mean(axis=1)


def test_idles_without_complaints(page: Page) -> None:
    page.value(WATCH)
    page.until("watch.mouths.length > 60")
    mouths, frames = watched(page)
    assert (frames == -1).all()
    moved = changes(mouths)
    assert 0 < moved.max() < 4  # it lives, and does not jump
    whole = page.value("[canvas.width, canvas.height]")
    assert whole == [640, 360]
    assert page.value("document.querySelector('#avatars input:checked').value") == "demo"
    page.until("document.querySelector('#avatars img').naturalWidth > 0")
    assert page.value("document.querySelector('#stop').disabled")
    assert page.problems == []


def test_a_text_is_spoken_and_stopped(page: Page) -> None:
    def types(text: str) -> None:
        page.value(f"document.querySelector('#text').value = {json.dumps(text)}")
        page.click("#say-text")

    assert not is_hidden(page, "#text-form")
    types("  ")
    assert page.value("lipsync.state") == "idle", "there is nothing to say"
    types("ten letter")
    page.until("lipsync.state === 'speaking'")
    stopped(page)
    types("a text of which there is more than anyone wants to hear")
    page.until("lipsync.state === 'speaking'")
    page.click("#stop")
    page.until("lipsync.state === 'idle'")
    types("refused")
    page.until("!document.querySelector('#notice').hidden")
    assert "401" in page.value("document.querySelector('#notice-text').textContent")
    assert page.problems == []


@pytest.mark.parametrize("codec", CODECS)
def test_the_sample_is_in_step_with_its_sound(tab: Page, served: LocalServer, codec: str) -> None:
    """How many pictures are drawn is the machine's; those that are, are drawn when they should."""
    page = tab
    open_page(page, served.http_url, codec)
    for _ in range(ATTEMPTS):  # until enough are
        page.value("lipsync.metrics.offsets.length = 0")
        before = metrics(page)
        page.click("#sample")
        page.until("lipsync.state === 'speaking'")
        assert page.value("document.querySelector('#state-text').textContent") == "Speaking."
        stopped(page)
        measured = metrics(page)
        names = ("spokenDrawn", "lost", "skipped", "serverSkipped")
        drawn, *told = [measured[name] - before[name] for name in names]
        assert drawn + sum(told) >= FIRST_FRAMES, "a frame is missing without a word"
        if drawn > FIRST_FRAMES // 2:
            break
    sync = measured["sync"]
    assert sync["count"] > 0.9 * min(drawn, 250) > 50, measured
    assert abs(sync["median"]) < IN_STEP_MS / 2, measured
    assert sync["within"] > 0.95, measured
    assert page.problems == []


def test_the_mouth_follows_the_sound(tab: Page, real: LocalServer) -> None:
    page = tab
    page.open(real.http_url + "/")
    page.until(IDLES)
    for _ in range(ATTEMPTS):  # until enough pictures were made: how fast that is, is not asked
        page.value(WATCH)
        page.until("watch.mouths.length > 25")
        begin_sample(page, 1)
        stopped(page)
        mouths, frames = watched(page)
        if (frames >= 0).sum() > SAMPLE_FRAMES // 4:
            break
    # A server short of time makes every second frame, so neighbours may lie further apart.
    spoken, both = frames >= 0, (np.diff(frames) >= 1) & (np.diff(frames) <= 3) & (frames[:-1] >= 0)
    assert frames.max() < SAMPLE_FRAMES
    moved = changes(mouths)
    rest = moved[~spoken[1:] & ~spoken[:-1]]
    assert np.percentile(moved[both], 75) > 2 * np.percentile(rest, 75)
    resting = darkness(mouths[:20]).mean()
    loud, quiet = by_loudness(darkness(mouths[spoken]), frames[spoken])
    assert loud - resting > 20
    # In the sound's pauses it rests, nearly as it does when nobody speaks.
    assert abs(quiet - resting) < (loud - resting) / 4, (loud, quiet, resting)


def darkness(mouths: np.ndarray) -> np.ndarray:
    """How dark the darkest part of each mouth is: an open one is dark inside."""
    return 255 - np.sort(mouths, axis=1)[:, :30].mean(axis=1)


def by_loudness(shown: np.ndarray, frames: np.ndarray) -> tuple[float, float]:
    """Means of what the spoken frames showed: in the recording's loud and in its silent parts."""
    path = Path(lipsync_fast.__file__).parent / "data" / "demo" / "speech.wav"
    with wave.open(str(path)) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)
    count = len(pcm) // 640
    level = np.sqrt((pcm[: count * 640].reshape(count, 640) ** 2).mean(axis=1))
    # Silent also just before and after: the mouth moves ahead of the voice.
    near = np.array([level[max(0, i - 6) : i + 7].max() for i in range(count)])
    silent, loud = near < 0.02 * level.max(), level > np.median(level)
    shown, frames = shown[frames < count], frames[frames < count]
    assert silent[frames].any()
    return float(shown[loud[frames]].mean()), float(shown[silent[frames]].mean())


@pytest.mark.parametrize("codec", CODECS)
def test_stop_interrupts_and_the_next_utterance_is_in_step(
    tab: Page, served: LocalServer, codec: str
) -> None:
    page = tab
    open_page(page, served.http_url, codec)
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


def test_the_microphone_is_heard(page: Page, served: LocalServer) -> None:
    """Chromium's own microphone beeps once a second."""
    let_microphone(page, served.http_url, "granted")
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
    assert "notes.txt" in said(page)
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
    page.until(IDLES)
    assert "nobody" in said(page)
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
    for _ in range(8):
        page.press("Tab", 9)
        reached.append(page.value("document.activeElement.id || document.activeElement.name"))
    assert reached == ["sample", "mic", "open", "mute", "full", "text", "say-text", "avatar"]


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


def test_comes_back_after_the_server(tab: Page, port: int) -> None:
    page = tab
    config = CONFIG | {"listen": {"http_port": port}}
    with LocalServer(config, command=QUICK) as server:
        page.open(server.http_url + "/")
        page.until(IDLES)
        begin_sample(page, 5)
    page.until("lipsync.state === 'waiting'")
    assert said(page).startswith("The server")
    assert page.value("document.querySelector('#notice').role") == "alert"
    assert page.value("document.querySelector('#sample').disabled")
    before = page.value("lipsync.metrics.drawn")
    with LocalServer(config, command=QUICK):
        page.until(f"lipsync.state === 'idle' && lipsync.metrics.drawn > {before} + 5")
        assert is_hidden(page, "#notice")
    # Nothing but what the browser itself says of a server that is not there.
    assert all("network error" in p or "WebSocket" in p for p in page.problems), page.problems


def test_choosing_an_avatar(tab: Page, tiny_avatar: Path) -> None:
    page = tab
    with LocalServer(CONFIG | {"avatars": {"folders": [str(tiny_avatar.parent)]}}) as server:
        page.open(server.http_url + "/")
        page.until(IDLES)
        page.until("document.querySelectorAll('#avatars img').length === 3")
        page.click("#avatars input[value=tiny]")
        page.until("lipsync.started.avatar === 'tiny' && canvas.width === 160")
        page.value("document.querySelector('#avatars input:checked').focus()")
        page.press("ArrowLeft", 37)
        page.until("lipsync.started.avatar === 'ben' && canvas.height > canvas.width")
        page.press("ArrowLeft", 37)
        page.until("lipsync.started.avatar === 'demo' && canvas.width === 640")
        page.until("document.querySelector('#avatars input:checked').value === 'demo'")
    assert [p for p in page.problems if "WebSocket" not in p] == []


def test_a_microphone_that_is_not_allowed_has_a_sentence(page: Page, served: LocalServer) -> None:
    let_microphone(page, served.http_url, "denied")
    page.click("#mic")
    assert "not allowed" in said(page)
    assert page.value("document.querySelector('#notice-action').textContent") == "Open a file"
    assert page.value("lipsync.state") == "idle"
    page.click("#notice-close")
    assert is_hidden(page, "#notice")


def test_a_full_server_is_told_and_waited_for(tab: Page) -> None:
    page = tab
    with LocalServer(CONFIG | {"limits": {"sessions": 1}}, command=QUICK) as server:
        with connect(server.url, subprotocols=[Subprotocol("lipsync.v1")]) as other:
            other.send('{"type": "session.start", "idle": false}')
            assert "session.started" in str(other.recv())
            page.open(server.http_url + "/")
            page.until("window.lipsync?.state === 'waiting'")
            page.until("document.querySelector('#notice').dataset.word === 'full'")
        page.until("lipsync.state === 'idle' && lipsync.metrics.drawn > 5")
        assert is_hidden(page, "#notice")
    page.open("about:blank")


def test_too_many_speakers_have_a_sentence(tab: Page) -> None:
    page = tab
    patient = CONFIG | {"live": {**CONFIG["live"], "speakers": 1, "quiet_s": 600.0}}
    with LocalServer(patient, command=QUICK) as server:
        page.open(server.http_url + "/")
        page.until(IDLES)
        with connect(server.url, subprotocols=[Subprotocol("lipsync.v1")]) as other:
            other.send('{"type": "session.start", "idle": false}')
            other.send(bytes(3200))  # never ended: it keeps the place
            other.send('{"type": "ping"}')
            while "pong" not in str(other.recv()):
                pass
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
