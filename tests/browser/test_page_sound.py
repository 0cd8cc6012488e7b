# SPDX-License-Identifier: Apache-2.0
"""How the page keeps time: behind a stall, without its device, unseen, with one's own voice."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlsplit

import pytest
from cdp import Page
from pages import (
    ATTEMPTS,
    CODECS,
    IDLES,
    IN_STEP_MS,
    Relay,
    before_the_page,
    begin_sample,
    hide,
    is_hidden,
    let_microphone,
    metrics,
    open_page,
    relay,
    said,
    stopped,
)
from talking import front_load

from lipsync_fast.client.local import LocalServer

pytestmark = pytest.mark.clock

VOICE = """
  const rate = 48000;
  // As a voice: a tone of that pitch with its overtones; seconds from `from`.
  const voice = (pitch, from, seconds = 0.04) => Float32Array.from(
    { length: Math.round(seconds * rate) }, (_, i) => {
      const t = from + i / rate;
      const wave = (n) => (0.3 / n) * Math.sin(2 * Math.PI * n * pitch * t);
      return wave(1) + wave(2) + wave(3);
    });
  const steep = (x, i) => (i ? Math.abs(x[i] - x[i - 1]) : 0);
  const steepest = (x) => x.reduce((most, _, i) => Math.max(most, steep(x, i)), 0);
"""


def run(page: Page, module: str, body: str) -> Any:
    """What a function body gives that knows a module of the page as ``m``."""
    return page.value(f"import('/assets/{module}.js').then((m) => {{ {body} }})")


# ---------------------------------------------------------------- pure functions
@pytest.mark.parametrize("pitch", [85, 137, 220, 390])
def test_sound_is_shortened_without_a_click_at_its_pitch(page: Page, pitch: int) -> None:
    length, left, first, last, steep, before, periods = run(
        page,
        "soundtrack",
        VOICE
        + f"""
        const x = voice({pitch}, 0.3), y = m.shorten(x, rate, 960);
        // The pitch: how far apart the waves are that look most alike.
        let best = [0, -2];
        for (let lag = 100; lag < 620; lag++) {{
          let both = 0, all = 0;
          for (let i = 0; i + lag < y.length; i++) {{
            both += y[i] * y[i + lag];
            all += y[i] ** 2;
          }}
          if (both / all > best[1] + 0.002) best = [lag, both / all];
        }}
        const ends = [x[0] - y[0], x.at(-1) - y.at(-1)];
        return [x.length, y.length, ...ends, steepest(y), steepest(x), best[0]];
        """,
    )
    assert length == 1920
    assert 960 <= left <= 1920 - 48 * 2.5, "some of it is left out, but no more than was asked for"
    assert (first, last) == (0, 0), "it joins its neighbours"
    assert steep < 1.3 * before, "no click"
    assert periods == pytest.approx(48_000 / pitch, rel=0.04), "the pitch is what it was"


def test_little_is_left_of_quiet_sound_and_nothing_is_left_out_for_nothing(page: Page) -> None:
    lengths = run(
        page,
        "soundtrack",
        """
        const noise = Float32Array.from({ length: 1920 }, (_, i) => 0.004 * Math.sin(i * i));
        const loud = noise.map((v) => v * 100);
        return [m.shorten(noise, 48000, 1920), m.shorten(noise, 48000, 480),
                m.shorten(loud, 48000, 100), m.shorten(loud.subarray(0, 200), 48000, 960),
                m.shorten(new Float32Array(0), 48000, 960)].map((x) => x.length);
        """,
    )
    assert lengths == [480, 1440, 1920, 200, 0]


def test_a_second_of_excess_is_spoken_away_in_time(page: Page) -> None:
    """850 ms too late, with a voice that never pauses: pieces stay joined, and in order."""
    told = run(
        page,
        "soundtrack",
        VOICE
        + """
        const track = new m.Soundtrack(rate), clicks = [];
        let excess = 850, done = null, heard = [];
        for (let n = 0; n < 150; n++) {
          const samples = voice(110, n * 0.04);
          const placed = track.place({ pts: 1000 + 40 * n, samples, utterance: 1 },
            { first: 5, soonest: 0, excess: () => excess });
          excess -= ((samples.length - placed.samples.length) / rate) * 1000;
          heard.push(placed);
          if (done === null && excess < 45) done = placed.time - 5;
        }
        const joined = heard.every((p, i) => !i ||
          Math.abs(p.time - heard[i - 1].time - heard[i - 1].samples.length / rate) < 1e-9);
        const whole = heard.flatMap((p) => [...p.samples]);
        const times = Array.from({ length: 5900 }, (_, i) => track.timeOf(1000 + i));
        return { done, excess, joined, late: heard.some((p) => p.late),
          steep: steepest(whole) / steepest(voice(110, 0, 1)),
          order: times.every((t, i) => !i || t >= times[i - 1]),
          began: heard.slice(-100).every((p, i) => track.began(1000 + 40 * (50 + i)) === p.time) };
        """,
    )
    assert told["done"] < 2.0, told
    assert -5 < told["excess"] < 45
    assert told["joined"]
    assert not told["late"]
    assert told["order"]
    assert told["began"]
    assert told["steep"] < 1.4, told


def test_where_sound_lies(page: Page) -> None:
    """Before the first piece, within one, in a pause, behind the last one; and one that is late."""
    told = run(
        page,
        "soundtrack",
        """
        const track = new m.Soundtrack(1000); // a sample is a millisecond
        const piece = (pts) => ({ pts, samples: new Float32Array(40).fill(0.5), utterance: 1 });
        const never = { first: 2, soonest: 0, excess: () => 0 };
        const a = track.place(piece(100), never), b = track.place(piece(140), never);
        const c = track.place(piece(260), never); // 80 ms of rest before it
        const places = [60, 100, 150, 190, 250, 259, 270, 340].map((p) => track.timeOf(p));
        const d = track.place(piece(300), { ...never, soonest: 3 });
        const e = track.place(piece(440), { ...never, excess: () => 60 }); // 100 ms of rest
        return { times: [a, b, c, d, e].map((p) => p.time), places,
          late: [c.late, d.late, e.late], faded: [d.samples[0], d.samples[39]],
          gone: track.began(123) ?? null };
        """,
    )
    assert told["times"] == pytest.approx([2, 2.04, 2.16, 3.02, 3.1])
    assert told["places"] == pytest.approx([1.96, 2, 2.05, 2.09, 2.15, 2.159, 2.17, 2.24])
    assert told["late"] == [False, True, False]
    assert told["faded"] == [0, 0.5]
    assert told["gone"] is None


def test_what_the_buffer_remembers(page: Page) -> None:
    """(now, pts) in, the delay out: jitter for seconds, a stall for a moment, many stalls again."""
    told = run(
        page,
        "delay",
        """
        const steady = (d, from, to, late = 0) => {
          for (let pts = from; pts < to; pts += 40) d.came(pts + late, pts);
        };
        const out = {};
        const calm = new m.Delay();
        out.nothing = calm.wanted(0);
        steady(calm, 0, 2000, 10);
        out.calm = calm.wanted(2000);
        calm.came(2000 + 160, 2000); // 150 ms later than the best
        steady(calm, 2040, 5000, 10);
        out.uneven = [calm.wanted(5000), calm.wanted(6200)];
        const stalled = new m.Delay();
        steady(stalled, 0, 2000);
        for (let pts = 2000; pts < 2900; pts += 40) stalled.came(2900, pts);
        out.stall = [stalled.wanted(2900), stalled.wanted(3100)];
        steady(stalled, 2920, 3160);
        out.over = stalled.wanted(3160);
        const again = new m.Delay();
        for (let n = 0; n < 3; n++) {
          steady(again, 2000 * n, 2000 * n + 1000);
          const held = 2000 * n + 1000;
          for (let pts = held; pts < held + 500; pts += 40) again.came(held + 500, pts);
          steady(again, 2000 * n + 1520, 2000 * n + 2000);
        }
        out.again = again.wanted(6000);
        const slow = new m.Delay();
        steady(slow, 0, 1000);
        for (let n = 0; n < 30; n++) slow.decoded(70);
        out.slow = slow.wanted(1000);
        return out;
        """,
    )
    assert told["nothing"] is None
    assert told["calm"] == 10 + 45
    assert told["uneven"] == [160 + 45, 10 + 45]
    assert told["stall"] == [900 + 45, 900 + 45]
    assert 45 <= told["over"] <= 45 + 20
    assert told["again"] == 500 + 45, "three stalls in ten seconds are how this network is"
    assert told["slow"] == 70 + 20


def test_the_clock_is_steered_without_a_jump(page: Page) -> None:
    values = run(
        page,
        "delay",
        """
        const idle = (b, w, t) => m.steered(b, w, t, false);
        let base = 1000, took = 0;
        while (base > 100) { base = idle(base, 100, 16); took += 16; }
        return [idle(1000, 100, 40), idle(100, 1000, 40), m.steered(100, 1000, 40, true),
                idle(100, 99, 40), idle(1000, 100, 5000), took];
        """,
    )
    assert values[:5] == pytest.approx([966, 120, 104, 99, 915])
    assert values[5] < 1200


# ---------------------------------------------------------------- a stall
LOG = """
(() => {
  const m = lipsync.metrics, log = (window.log = []);
  const look = () => {
    if (window.log !== log) return;
    requestAnimationFrame(look);
    log.push([performance.now(), m.bufferMs, m.excessMs, m.shortenedMs]);
  };
  look();
})()
"""


@pytest.fixture
def held(tab: Page, served: LocalServer) -> Any:
    """The page behind a relay that can stall."""
    with relay(int(urlsplit(served.http_url).port or 0)) as between:
        open_page(tab, f"http://127.0.0.1:{between.port}")
        yield between
        tab.open("about:blank")


def recovery(page: Page, between: Relay) -> tuple[float, float] | None:
    """Stall for 0.9 s: after how many ms the buffer is what it was, by the page's own clock, and
    how many ms of sound were left out for it; None where the utterance was over before."""
    page.until("lipsync.metrics.excessMs < 50 || lipsync.state === 'idle'")
    usual = page.value("lipsync.metrics.bufferMs")
    page.value(LOG)
    between.stall(0.9)
    # Back: as before; or as the network needs now, where a busy machine makes it uneven.
    back = f"b < {usual} + 100 || (e < 50 && t > after + 400)"
    found = page.until(
        f"(() => {{ const [after] = log.find(([, b]) => b > {usual} + 400) ?? [Infinity];"
        f" const back = log.find(([t, b, e]) => t > after && ({back}));"
        " if (back) return [back[0] - after, back[3] - log[0][3]];"
        " return lipsync.state === 'idle' && 'over'; })()"
    )
    page.value("window.log = null")
    return None if found == "over" else (float(found[0]), float(found[1]))


def test_the_buffer_recovers_from_a_stall_while_speaking(tab: Page, held: Relay) -> None:
    """Again where the machine itself stalls: then it is not this stall that is measured."""
    seen = []
    for _ in range(ATTEMPTS):
        tab.value("lipsync.metrics.offsets.length = 0")
        begin_sample(tab, 10)
        seen.append((recovery(tab, held), metrics(tab)["sync"]))
        tab.click("#stop")
        tab.until("lipsync.state === 'idle'")
        took, shortened = seen[-1][0] or (9e9, 0.0)
        if took < 2000 and shortened > 300:
            break
    recovered, sync = seen[-1]
    assert recovered is not None, seen
    took, shortened = recovered
    assert took < 2000, seen
    assert shortened > 300, ("sound was made shorter", seen)
    assert sync["within"] > 0.95, seen
    assert abs(sync["median"]) < IN_STEP_MS / 2, seen


def test_the_buffer_recovers_from_a_stall_at_rest(tab: Page, held: Relay) -> None:
    """Again where the machine itself stalls, as above."""
    tab.until("lipsync.metrics.drawn > 40")
    seen = []
    for _ in range(ATTEMPTS):
        shown, usual = tab.value("[lipsync.metrics.drawn, lipsync.metrics.bufferMs]")
        tab.value(LOG)
        held.stall(0.9)
        # It is as small as it can be; then as before, or as the network needs now.
        small = "log.findLast(([, , e]) => e < -300)?.[0]"
        tab.until(small)
        tab.until(
            f"log.some(([t, b, e]) => t > {small} + 400 && Math.abs(e) < 30 && b < {usual} + 400)"
        )
        log = tab.value("log")
        seen.append(log[-1][0] - next(t for t, _, e, _ in log if e < -300))
        tab.until(f"lipsync.metrics.drawn > {shown} + 10")
        if seen[-1] < 2500:
            break
    assert seen[-1] < 2500, seen


# ---------------------------------------------------------------- the device takes the sound
TAKEN = """
(() => {
  const Real = window.AudioContext;
  window.contexts = [];
  window.AudioContext = class extends Real {
    constructor(...a) { super(...a); window.contexts.push(this); }
    resume() {
      const pressed = window.event?.isTrusted && window.event.type === "click";
      const given = !window.taken || (window.taken === "until pressed" && pressed);
      if (!given) return Promise.reject(new Error("taken"));
      window.taken = null;
      return super.resume();
    }
  };
  window.take = (how) => {
    window.taken = how;
    return Promise.all(contexts.map((c) => c.suspend()));
  };
})()
"""


def test_sound_that_the_device_takes_comes_back(tab: Page, served: LocalServer) -> None:
    page = tab
    with before_the_page(page, TAKEN):
        page.open(served.http_url + "/")
        page.until(IDLES)
        begin_sample(page, 10)
        page.value("take('until given back')")
        assert "taken the sound away" in said(page)
        shown = page.value("lipsync.metrics.spokenDrawn")
        page.until(f"lipsync.metrics.spokenDrawn > {shown} + 15 || lipsync.state === 'idle'")
        assert page.value("lipsync.metrics.spokenDrawn") > shown, "pictures go on"
        assert not is_hidden(page, "#notice")
        page.value("window.taken = null")
        page.until("contexts[0].state === 'running'")  # by itself
        page.until("document.querySelector('#notice').hidden")
        in_step_again(page)

        page.value("take('until pressed')")
        assert "taken the sound away" in said(page)
        page.click("#notice-action")
        page.until("contexts[0].state === 'running'")
        page.until("document.querySelector('#notice').hidden")
        in_step_again(page)
        page.click("#stop")
    assert page.problems == []


def in_step_again(page: Page) -> None:
    """Sound is played again, and pictures are drawn with it."""
    page.value("lipsync.metrics.offsets.length = 0")
    if page.value("lipsync.state") != "speaking":
        begin_sample(page, 5)
    page.until("lipsync.metrics.offsets.length > 10")
    assert metrics(page)["sync"]["within"] > 0.9


def test_a_microphone_that_the_device_takes_ends_what_it_heard(
    tab: Page, served: LocalServer
) -> None:
    page = tab
    let_microphone(page, served.http_url, "granted")
    with before_the_page(page, TAKEN):
        page.open(served.http_url + "/")
        page.until(IDLES)
        page.click("#mic")
        page.until("lipsync.metrics.spokenDrawn > 3")
        page.until("lipsync.state !== 'listening'")
        page.value("take('until given back')")
        assert "microphone away" in said(page) or "sound away" in said(page)
        page.until("lipsync.state === 'listening'")  # what was heard is over, and shown
        page.value("window.taken = null")
        page.until("contexts.every((c) => c.state !== 'suspended')")
        page.until("document.querySelector('#notice').hidden")
        heard = page.value("lipsync.metrics.spokenDrawn")
        page.until(f"lipsync.metrics.spokenDrawn > {heard} + 3")
        page.click("#mic")
    assert page.problems == []


# ---------------------------------------------------------------- one's own voice
PLAYED = """
(() => {
  window.played = 0;
  const start = AudioBufferSourceNode.prototype.start;
  AudioBufferSourceNode.prototype.start = function (...a) {
    window.played++;
    return start.apply(this, a);
  };
  window.came = { 1: 0, 3: 0, 4: 0 };
  const Real = window.WebSocket;
  window.WebSocket = class extends Real {
    constructor(...a) {
      super(...a);
      this.addEventListener("message", ({ data }) => {
        if (typeof data !== "string") window.came[new Uint8Array(data)[4]]++;
      });
    }
  };
})()
"""


def test_ones_own_voice_is_not_played_back_unless_one_asks(tab: Page, served: LocalServer) -> None:
    page = tab
    let_microphone(page, served.http_url, "granted")
    with before_the_page(page, PLAYED):
        page.open(served.http_url + "/")
        page.until(IDLES)
        assert is_hidden(page, "#options")
        page.click("#mic")
        page.until("lipsync.state === 'listening' || lipsync.state === 'hearing'")
        assert not is_hidden(page, "#options")
        page.until("came[3] > 12 && lipsync.metrics.spokenDrawn > 0")
        assert page.value("played") == 0
        page.until("document.querySelector('#state-text').textContent.includes('repeats')")
        page.click("#voice-back")
        page.until("played > 3")
        page.click("#mic")
        stopped(page)
        page.value("document.querySelector('#voice-back').checked = false; localStorage.clear()")
        # A file is played whatever was asked for the microphone.
        played = page.value("played")
        begin_sample(page, 5)
        page.until(f"played > {played} + 3")
        page.click("#stop")
    assert page.problems == []


def test_another_microphone_can_be_picked(page: Page, served: LocalServer) -> None:
    let_microphone(page, served.http_url, "granted")
    page.click("#mic")
    page.until("lipsync.state === 'listening' || lipsync.state === 'hearing'")
    page.until("document.querySelector('#device').options.length > 1")
    assert not is_hidden(page, "#device-label")
    names = page.value("[...document.querySelector('#device').options].map((o) => o.text)")
    assert len(set(names)) == len(names)
    page.value("device.selectedIndex = device.options.length - 1; device.onchange()")
    wanted = page.value("device.value")
    assert page.value("localStorage.getItem('lipsync-fast.microphone')") == wanted
    page.click("#mic")  # before the other one is there: off is off
    page.until("document.querySelector('#options').hidden && lipsync.state === 'idle'")
    page.click("#mic")
    page.until("!document.querySelector('#options').hidden")
    page.until(f"device.value === '{wanted}'")
    page.click("#mic")
    page.value("localStorage.clear()")
    assert page.problems == []


# ---------------------------------------------------------------- unseen
def frames_at_rest(served: LocalServer) -> int:
    """How many the front has sent, once that is all: heartbeats come four times a second."""
    before = -1
    while (now := front_load(served).frames) != before:
        before = now
        time.sleep(0.6)
    return now


@pytest.mark.parametrize("codec", CODECS)
def test_a_page_that_nobody_sees_gets_no_pictures(
    tab: Page, served: LocalServer, codec: str
) -> None:
    page, of = tab, 4 if codec == "h264" else 1
    with before_the_page(page, PLAYED):
        open_page(page, served.http_url, codec)
        begin_sample(page, 10)
        hide(page, True)
        page.until(
            f"(had = came[{of}], new Promise((r) => setTimeout(() => r(came[{of}] === had), 300)))"
        )
        pictures, sounds, played = page.value(f"[came[{of}], came[3], window.played]")
        page.until(f"came[3] > {sounds} + 20 && window.played > {played} + 15")
        assert page.value("came[1] + came[4]") == pictures, "sound goes on, pictures do not come"
        before = frames_at_rest(served)
        page.until("lipsync.state === 'idle'")
        assert frames_at_rest(served) == before, "the server sends none"
        hide(page, False)
        page.until(f"came[{of}] > {pictures} + 10")
        drawn = page.value("lipsync.metrics.drawn")
        page.until(f"lipsync.metrics.drawn > {drawn} + 10")
        assert page.value("lipsync.metrics.excessMs") < 150
    assert page.problems == []
