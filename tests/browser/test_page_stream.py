# SPDX-License-Identifier: Apache-2.0
"""Pictures as a stream of H.264 in the page: as good as JPEGs, in fewer bytes; or without it."""

from __future__ import annotations

import base64
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cdp import Page
from pages import (
    ATTEMPTS,
    CODECS,
    CONFIG,
    IDLES,
    IN_STEP_MS,
    JPEGS_ONLY,
    before_the_page,
    begin_sample,
    hide,
    is_hidden,
    metrics,
    open_page,
    stopped,
)

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.client.local import LocalServer

pytestmark = pytest.mark.clock

MOST_OPEN = 6
"""Decoded pictures that may be kept at a time: decoders of devices have few."""
WORDS = """
(() => {
  // Text messages, both ways; sizes of access units, and whether each can be decoded by itself.
  window.said = []; window.told = []; window.units = [];
  const Real = window.WebSocket;
  window.WebSocket = class extends Real {
    constructor(...a) {
      super(...a);
      this.addEventListener("message", ({ data }) => {
        if (typeof data === "string") return told.push(JSON.parse(data));
        const bytes = new Uint8Array(data);
        if (bytes[4] === 4) units.push({ key: (bytes[5] & 16) !== 0, size: bytes.length });
      });
    }
    send(data) {
      if (typeof data === "string") said.push(JSON.parse(data));
      super.send(data);
    }
  };
  window.asked = (type) => said.filter((message) => message.type === type).length;
})();
"""
COUNTED = """
(() => {
  // Pictures that decoders have given, and that are not closed yet.
  window.pictures = { given: 0, open: 0, most: 0 };
  const Real = window.VideoDecoder, close = VideoFrame.prototype.close;
  window.VideoDecoder = class extends Real {
    constructor({ output, error }) {
      super({
        error,
        output(image) {
          image.counted = true;
          pictures.given++;
          pictures.most = Math.max(pictures.most, ++pictures.open);
          output(image);
        },
      });
    }
  };
  VideoFrame.prototype.close = function () {
    if (this.counted) pictures.open--;
    this.counted = false;
    return close.call(this);
  };
})();
"""
OTHERWISE = """
(() => {
  // A decoder that gives its pictures otherwise: PASS gets each, and what gives it.
  const Real = window.VideoDecoder;
  window.VideoDecoder = class extends Real {
    constructor({ output, error }) {
      const kept = [], pass = PASS;
      super({ error, output: (image) => pass(image, output, kept) });
    }
  };
})();
"""
TAKEN = """
(async (wanted) => {
  // Pictures as they are drawn at rest: which of the avatar's own, and their colours.
  const drawn = window.taken = {}, canvas = document.getElementById("canvas");
  const small = new OffscreenCanvas(canvas.width, canvas.height);
  const pixels = small.getContext("2d", { willReadFrequently: true, alpha: false });
  let last = -1;
  while (Object.keys(drawn).length < wanted) {
    await new Promise(requestAnimationFrame);
    const { avatarFrame } = lipsync.metrics;
    if (avatarFrame === last) continue;
    last = avatarFrame;
    pixels.drawImage(canvas, 0, 0);
    drawn[avatarFrame] = pixels.getImageData(0, 0, canvas.width, canvas.height).data;
  }
  return Object.keys(drawn).map(Number);
})
"""
COMPARED = """
(async (frame, jpeg) => {
  // As the page draws JPEGs; mean grey levels by which its picture and the one taken differ, of
  // each channel, and between their means.
  const bytes = Uint8Array.from(atob(jpeg), (c) => c.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
  const canvas = new OffscreenCanvas(image.width, image.height);
  const pixels = canvas.getContext("2d", { alpha: false });
  pixels.drawImage(image, 0, 0);
  const one = pixels.getImageData(0, 0, image.width, image.height).data, other = taken[frame];
  const off = [0, 0, 0], shift = [0, 0, 0];
  for (let i = 0; i < one.length; i += 4)
    for (let c = 0; c < 3; c++) {
      off[c] += Math.abs(one[i + c] - other[i + c]);
      shift[c] += one[i + c] - other[i + c];
    }
  const count = one.length / 4;
  return [off.map((sum) => sum / count), shift.map((sum) => Math.abs(sum) / count)];
})
"""


@pytest.fixture
def streamed(tab: Page, served: LocalServer) -> Any:
    """The page, with its words and decoded pictures counted."""
    with before_the_page(tab, WORDS + COUNTED):
        open_page(tab, served.http_url)
        yield tab
        tab.open("about:blank")


# ---------------------------------------------------------------- what is seen
def test_the_picture_is_the_one_of_the_jpeg(page: Page, demo: Path) -> None:
    with closing(AvatarPackage.open(demo)) as package:
        for frame in page.value(f"{TAKEN}(4)"):
            jpeg = base64.b64encode(package.frame_bytes(frame)).decode()
            off, shift = page.value(f"{COMPARED}({frame}, '{jpeg}')")
            assert max(off) <= 3, (frame, off)
            assert max(shift) <= 1, ("colours and brightness are the same", frame, shift)


def test_a_stream_takes_less_than_a_quarter_of_the_bytes(tab: Page, served: LocalServer) -> None:
    """While it speaks, with the sound; and what is shown is what came."""
    rates = {}
    for codec in CODECS:
        open_page(tab, served.http_url, codec)
        begin_sample(tab, 1)
        before, began = tab.value("[lipsync.metrics.received, performance.now()]")
        tab.until("lipsync.metrics.spokenDrawn >= 100 || lipsync.state === 'idle'")
        after, ended = tab.value("[lipsync.metrics.received, performance.now()]")
        rates[codec] = (after - before) * 8 / (ended - began)
        shown = tab.value("document.querySelector('#n-bandwidth').textContent")
        assert shown.endswith(" kbit/s")
        if codec == "jpeg":
            assert float(shown.split()[0].replace(",", "")) == pytest.approx(rates[codec], rel=0.4)
    assert 50 < rates["h264"] < rates["jpeg"] / 4, rates


# ---------------------------------------------------------------- decoding
def test_no_picture_is_kept_longer_than_it_is_needed(streamed: Page) -> None:
    page = streamed
    begin_sample(page, 5)
    page.value("new Promise((r) => setTimeout(r, 5_000))")
    stopped(page)
    given, most, still, drawn = page.value(
        "[pictures.given, pictures.most, pictures.open, lipsync.metrics.drawn]"
    )
    assert given > 100
    assert most <= MOST_OPEN
    assert still <= MOST_OPEN
    assert given - still - drawn <= metrics(page)["skipped"] + MOST_OPEN
    hide(page, True)
    page.until("pictures.open === 0")
    hide(page, False)
    assert page.value("asked('video.keyframe')") == 1
    assert page.problems == []


def test_seen_again_it_begins_with_a_key_frame_that_it_asks_for(streamed: Page) -> None:
    page = streamed
    assert page.value("asked('video.keyframe')") == 0
    assert page.value("units[0].key")
    hide(page, True)
    page.until("(had = units.length,"
               " new Promise((r) => setTimeout(() => r(units.length === had), 300)))")  # fmt: skip
    came, drawn = page.value("[units.length, lipsync.metrics.drawn]")
    hide(page, False)
    page.until(f"lipsync.metrics.drawn > {drawn} + 10")
    assert page.value(f"units[{came}].key")
    assert page.value("asked('video.keyframe')") == 1
    assert page.value("lipsync.codec") == "h264"
    assert page.problems == []


def test_a_decoder_that_fails_once_is_replaced(streamed: Page) -> None:
    """In the middle of what is said, which goes on."""
    page = streamed
    for failed in range(1, ATTEMPTS + 1):  # until the machine has time for what follows
        begin_sample(page, 10)
        page.value(
            "(() => { const real = EncodedVideoChunk;"
            " window.EncodedVideoChunk = class { constructor() {"
            " window.EncodedVideoChunk = real; throw new Error('fails once'); } }; })()"
        )
        page.until(f"asked('video.keyframe') === {failed}")
        wanted = page.value("lipsync.metrics.spokenDrawn") + 16
        page.until(f"lipsync.metrics.spokenDrawn >= {wanted} || lipsync.state === 'idle'")
        if page.value("lipsync.metrics.spokenDrawn") >= wanted:
            break
    assert page.value("lipsync.metrics.spokenDrawn") >= wanted
    stopped(page)
    assert page.value("lipsync.codec") == "h264"
    assert page.value("asked('session.update')") == 0
    assert is_hidden(page, "#notice")
    assert page.problems == []


@pytest.mark.parametrize(
    "fails",
    [
        "VideoDecoder.prototype.decode = () => { throw new Error('no memory') }",
        "const real = EncodedVideoChunk; window.EncodedVideoChunk = class extends real {"
        " constructor(a) { super({ ...a, type: 'key', data: new Uint8Array(999).fill(7) }) } }",
        "VideoDecoder.prototype.decode = () => {}",
        "VideoDecoder.prototype.configure = () => { throw new Error('no such codec') }",
    ],
    ids=["throws", "errs", "is silent", "cannot be configured"],
)
def test_without_a_decoder_that_works_jpegs_come(
    tab: Page, served: LocalServer, fails: str
) -> None:
    """In the same session, and nobody is told."""
    page = tab
    with before_the_page(page, WORDS + f"(() => {{ {fails} }})()"):
        page.open(served.http_url + "/")
        page.until(IDLES)
    assert page.value("lipsync.codec") == "jpeg"
    assert page.value("told.filter((m) => m.type === 'session.started').length") == 2
    assert page.value("new Set(told.map((m) => m.session).filter(Boolean)).size") == 1
    assert is_hidden(page, "#notice")
    begin_sample(page, 10)
    page.click("#stop")
    assert page.problems == []


def test_a_decoder_that_keeps_pictures_until_others_come_is_fed_more(
    tab: Page, served: LocalServer
) -> None:
    """As those of some devices do; what it shows is in step all the same."""
    page = tab
    holds = "(image, give, kept) => { kept.push(image); if (kept.length > 6) give(kept.shift()) }"
    for _ in range(ATTEMPTS):  # a machine that stalls for two seconds looks like a broken decoder
        with before_the_page(page, WORDS + OTHERWISE.replace("PASS", holds)):
            open_page(page, served.http_url)
        begin_sample(page, 60)
        stopped(page)
        if page.value("asked('video.keyframe')") == 0:
            break
    sync = metrics(page)["sync"]
    assert abs(sync["median"]) < IN_STEP_MS / 2, sync
    assert page.value("lipsync.codec") == "h264"
    assert page.value("asked('video.keyframe')") == 0
    assert page.problems == []


def test_a_decoder_that_is_too_slow_is_done_without(tab: Page, served: LocalServer) -> None:
    page = tab
    slow = (
        "(kept.timer = setInterval(() => kept.length && kept.shift()(), 80),"
        " (image, give) => kept.push(() => give(image)))"
    )
    with before_the_page(page, WORDS + OTHERWISE.replace("PASS", slow)):
        page.open(served.http_url + "/")
        page.until("window.lipsync?.codec === 'h264'")
    page.until("lipsync.codec === 'jpeg'")
    drawn = page.value("lipsync.metrics.drawn")
    page.until(f"lipsync.metrics.drawn > {drawn} + 20")
    assert is_hidden(page, "#notice")
    assert page.problems == []
    page.open("about:blank")


@pytest.mark.parametrize(
    "lacks",
    [
        "delete window.VideoDecoder",
        "VideoDecoder.isConfigSupported = async () => ({ supported: false })",
        "VideoDecoder.isConfigSupported = () => new Promise(() => {})",
        "VideoDecoder.isConfigSupported = async () => { throw new TypeError('codec') }",
    ],
    ids=["no WebCodecs", "no H.264", "no answer", "no idea"],
)
def test_a_browser_that_does_not_decode_gets_jpegs(
    tab: Page, served: LocalServer, lacks: str
) -> None:
    page = tab
    with before_the_page(page, WORDS + lacks):
        page.open(served.http_url + "/")
        page.until(IDLES)
    assert page.value("lipsync.codec") == "jpeg"
    assert page.value("units.length") == 0
    assert page.value("asked('session.update')") == 0
    assert page.problems == []


def test_a_server_that_does_not_encode_sends_jpegs(tab: Page) -> None:
    page = tab
    with LocalServer(CONFIG, command=JPEGS_ONLY) as server, before_the_page(page, WORDS):
        page.open(server.http_url + "/")
        page.until(IDLES)
        assert page.value("told[0].code") == "unsupported_video"
        assert page.value("asked('session.start')") == 2
        assert page.value("lipsync.codec") == "jpeg"
        assert is_hidden(page, "#notice")
        assert page.problems == []
        page.open("about:blank")


def test_the_codec_is_read_from_the_stream(page: Page) -> None:
    """Behind other units, with short and long start codes; the usual one where none is said."""
    assert page.value(
        "import('/assets/decoder.js').then((m) => ["
        " [0, 0, 0, 1, 9, 16, 0, 0, 1, 0x67, 0x42, 0xc0, 0x28, 1],"
        " [0, 0, 1, 0x27, 0x42, 0xe0, 0x0a],"
        " [0, 0, 0, 1, 0x65, 1, 2, 3, 4, 5],"
        " [0, 0, 1, 0x67, 0x42]].map((unit) => m.codecOf(new Uint8Array(unit))))"
    ) == ["avc1.42c028", "avc1.42e00a", "avc1.42c01f", "avc1.42c01f"]
