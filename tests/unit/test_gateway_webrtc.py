# SPDX-License-Identifier: Apache-2.0
"""The gateway's WebRTC before a front that is played: what peers get, say and are refused."""

from __future__ import annotations

import asyncio
import io
import socket
import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

aiortc = pytest.importorskip("aiortc", reason="the extra webrtc is not installed")
aiohttp = pytest.importorskip("aiohttp", reason="the extra webrtc is not installed")

import av  # noqa: E402
from aiortc.rtp import RtcpSenderInfo, RtcpSrPacket  # noqa: E402
from webrtc_world import LOUD, SDP, SECRET, World, run, until  # noqa: E402

from lipsync_fast.config import Listen, ServeConfig, WebRtc  # noqa: E402
from lipsync_fast.errors import PeerError  # noqa: E402
from lipsync_fast.gateway.webrtc import hearing, offers, peer, peers, sayings, tracks  # noqa: E402
from lipsync_fast.gateway.webrtc.hearing import RATE, Voice  # noqa: E402
from lipsync_fast.gateway.webrtc.timeline import Timeline  # noqa: E402
from lipsync_fast.gateway.webrtc.tracks import PACKET, PictureTrack, SoundTrack  # noqa: E402

# What aiortc does with older releases of pyOpenSSL.
pytestmark = pytest.mark.filterwarnings("ignore:Attempting to mutate a Context:DeprecationWarning")
GUARDED = ServeConfig(listen=Listen(token="sesame", origins=("https://good.example",)))
SHOWN = {"Authorization": "Bearer sesame"}


def tone(seconds: float, rate: int = RATE, hz: float = 440.0) -> Any:
    t = np.arange(round(seconds * rate)) / rate
    return (8000 * np.sin(2 * np.pi * hz * t)).astype(np.int16)


def wav(pcm: Any, rate: int = RATE, channels: int = 1) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
    return out.getvalue()


def test_a_track_of_sound_that_has_stopped_holds_no_threads() -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    async def run() -> None:
        before = threads()
        made = [SoundTrack(Timeline()) for _ in range(3)]
        for track in made:
            track.put(tone(0.1).tobytes(), 0)
            await track.recv()
        assert threads() > before
        for track in made:
            track.stop()
        while threads() > before:  # they take a moment to end
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 30))


class Microphone(aiortc.MediaStreamTrack):  # type: ignore[misc, name-defined]
    """A person who speaks for a while, and then is quiet."""

    kind = "audio"

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._said, self._at, self._began = tone(seconds), 0, 0.0

    async def recv(self) -> Any:
        loop = asyncio.get_running_loop()
        self._began = self._began or loop.time()
        await asyncio.sleep(max(0.0, self._began + self._at / RATE - loop.time()))
        samples = np.zeros(PACKET, np.int16)
        piece = self._said[self._at : self._at + PACKET]
        samples[: len(piece)] = piece
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._at, Fraction(1, RATE)
        self._at += PACKET
        return frame


# ---------------------------------------------------------------- what works
def test_a_peer_sees_and_hears_and_ends() -> None:
    async def body(world: World) -> None:
        browser, place = await world.watch(path="/whep?avatar=anna")
        await until(lambda: len(browser.pictures) > 20 and len(browser.sound) > 40)
        steps = np.diff(browser.pictures[:20])
        assert np.allclose(steps, 0.04, atol=1e-3), "time stamps are those of the session"
        (start,) = world.front.starts
        assert (start.avatar, start.video.codec, start.echo_audio) == ("anna", "h264", True)
        assert not start.pictures, "pictures are sent once somebody sees them"
        assert {h["X-Lipsync-Fast-Gateway"] for h in world.front.heads} == {SECRET}
        assert {h["X-Forwarded-For"] for h in world.front.heads} == {"127.0.0.1"}
        assert (world.peers, world.load.begun["webrtc/whep"]) == (1, 1)
        assert world.load.pictures["webrtc"] >= 20
        assert world.load.bytes["webrtc"] > 1000
        assert (await world.ask("DELETE", place))[0] == 200
        await until(lambda: world.peers == 0 and world.front.open == 0)
        status, text, _ = await world.ask("DELETE", place)
        assert (status, text) == (404, "this session has ended: the client has ended it\n")
        assert (world.load.failed["webrtc"], world.load.refused["webrtc"]) == (0, 1)
        await until(lambda: browser.pc.connectionState == "closed")

    run(body)


def test_a_recording_is_said_and_heard() -> None:
    async def body(world: World) -> None:
        browser, place = await world.watch()
        stereo = np.repeat(tone(1.0, 24_000), 2)
        status, _, _ = await world.ask("POST", f"{place}/audio", wav(stereo, 24_000, 2))
        assert status == 202
        await until(lambda: "UtteranceEnd" in world.front.said)
        heard = np.frombuffer(bytes(world.front.heard), np.int16)
        assert len(heard) == pytest.approx(RATE, abs=100)
        assert np.abs(heard).max() > 3 * LOUD
        await until(browser.is_loud)
        await until(lambda: not browser.is_loud())

    run(body)


def test_an_interruption_is_silence() -> None:
    async def body(world: World) -> None:
        browser, place = await world.watch()
        await world.ask("POST", f"{place}/audio", wav(tone(20.0)))
        await until(browser.is_loud)
        assert (await world.ask("DELETE", f"{place}/audio"))[0] == 204
        await until(lambda: "SessionInterrupt" in world.front.said)
        await until(lambda: not browser.is_loud())
        count = len(browser.sound)
        await until(lambda: len(browser.sound) > count + 25)
        assert not browser.is_loud(20)
        # What is said next is heard.
        await world.ask("POST", f"{place}/audio", wav(tone(1.0)))
        await until(browser.is_loud)

    run(body)


def test_a_microphone_is_what_is_said() -> None:
    async def body(world: World) -> None:
        browser, _ = await world.watch(world.browser(Microphone(1.5)))
        await until(browser.is_loud)
        await until(lambda: "UtteranceEnd" in world.front.said)
        heard = len(world.front.heard) / 2 / RATE
        assert 1.0 < heard < 1.5 + 2 * hearing.QUIET_S
        await asyncio.sleep(0.5)
        assert len(world.front.heard) / 2 / RATE == heard, "nothing is sent while it is quiet"

    run(body)


def test_a_peer_that_lost_packets_gets_a_key_frame() -> None:
    async def body(world: World) -> None:
        browser, _ = await world.watch()
        await asyncio.sleep(2 * peer.KEY_EVERY_S)
        before = world.front.said.count("VideoKeyframe")
        (video,) = [t for t in browser.pc.getTransceivers() if t.kind == "video"]
        (ssrc,) = list(video.receiver._RTCRtpReceiver__remote_streams)[:1]
        for _ in range(5):
            await video.receiver._send_rtcp_pli(ssrc)
        await until(lambda: world.front.said.count("VideoKeyframe") > before)
        assert world.front.said.count("VideoKeyframe") == before + 1, "asked for now and then"

    run(body)


def test_a_peer_may_want_pictures_alone() -> None:
    async def body(world: World) -> None:
        browser, _ = await world.watch(world.browser(sound=False))
        await until(lambda: len(browser.pictures) > 5)

    run(body)


# ---------------------------------------------------------------- LiveTalking
def test_livetalkings_routes() -> None:
    async def body(world: World) -> None:
        browser = world.browser()
        offered = {"sdp": await browser.offer(), "type": "offer", "avatar": "anna"}
        answer = await world.told("/offer", offered)
        assert answer["type"] == "answer"
        await browser.answered(answer["sdp"])
        await until(lambda: browser.pictures)
        sid = {"sessionid": answer["sessionid"]}
        assert world.front.starts[0].avatar == "anna"
        assert await world.told("/is_speaking", sid) == {"code": 0, "msg": "ok", "data": False}
        form = aiohttp.FormData()
        form.add_field("sessionid", answer["sessionid"])
        form.add_field("file", io.BytesIO(wav(tone(20.0))), filename="speech.wav")
        assert await world.told("/humanaudio", form) == {"code": 0, "msg": "ok"}
        await until(browser.is_loud)
        assert (await world.told("/is_speaking", sid))["data"] is True
        assert await world.told("/interrupt_talk", sid) == {"code": 0, "msg": "ok"}
        await until(lambda: not browser.is_loud())
        for path, more, words in (
            ("/human", {"text": "hello", "type": "echo"}, "no text-to-speech"),
            ("/set_audiotype", {"audiotype": 1}, "no other motions"),
            ("/record", {"type": "end_record"}, "nothing is being recorded"),
        ):
            told = await world.told(path, sid | more)
            assert told["code"] == -1
            assert words in told["msg"]
        status, text, _ = await world.ask("GET", f"/record/{answer['sessionid']}")
        assert status == 200
        assert '"code":-1' in text
        begun = world.load.begun
        assert (begun["webrtc/offer"], begun["webrtc/humanaudio"], begun["webrtc/human"]) == (
            1,
            1,
            1,
        )
        assert world.load.refused["webrtc"] == 4

    run(body)


def test_what_is_shown_and_heard_can_be_recorded() -> None:
    async def body(world: World) -> None:
        browser = world.browser()
        answer = await world.told("/offer", {"sdp": await browser.offer()})
        await browser.answered(answer["sdp"])
        await until(lambda: browser.pictures)
        sid, place = {"sessionid": answer["sessionid"]}, f"/record/{answer['sessionid']}"
        start, end = sid | {"type": "start_record"}, sid | {"type": "end_record"}
        assert await world.told("/record", start) == {"code": 0, "msg": "ok"}
        assert (await world.told("/record", start))["msg"] == "it is being recorded already"
        status, text, _ = await world.ask("GET", place)
        assert (status, "nothing was recorded" in text) == (200, True)
        seen = len(browser.pictures)
        await until(lambda: len(browser.pictures) > seen + 15)  # a key frame has come
        form = aiohttp.FormData()
        form.add_field("sessionid", answer["sessionid"])
        form.add_field("file", io.BytesIO(wav(tone(1.0))), filename="speech.wav")
        assert (await world.told("/humanaudio", form))["code"] == 0
        await until(browser.is_loud)
        await until(lambda: not browser.is_loud())
        assert await world.told("/record", end) == {"code": 0, "msg": "ok"}
        for _ in range(2):
            async with world.http.get(place) as got:
                assert got.content_type == "video/mp4"
                film = await got.read()
        with av.open(io.BytesIO(film)) as made:
            times = [float(frame.time) for frame in made.decode(video=0)]
        with av.open(io.BytesIO(film)) as made:
            sound = np.concatenate([f.to_ndarray().reshape(-1) for f in made.decode(audio=0)])
        assert len(times) > 20
        assert np.diff(times).min() > 0
        loud = np.flatnonzero(np.abs(sound) > 0.05)
        assert (loud[-1] - loud[0]) / 48_000 == pytest.approx(1.0, abs=0.1)
        assert len(sound) / 48_000 == pytest.approx(times[-1], abs=0.2)
        assert "start_record" in (await world.told("/record", sid))["msg"]

    run(body)


def test_texts_are_said_one_behind_the_other() -> None:
    async def body(world: World) -> None:
        world.front.text = True
        browser = world.browser()
        answer = await world.told("/offer", {"sdp": await browser.offer()})
        await browser.answered(answer["sdp"])
        await until(lambda: browser.pictures)
        sid = {"sessionid": answer["sessionid"]}
        place = f"/whep/{answer['sessionid']}/text"
        for text in ("one ", "two "):
            assert await world.told("/human", sid | {"text": text}) == {"code": 0, "msg": "ok"}
        assert (await world.told("/is_speaking", sid))["data"] is True
        status, *_ = await world.ask("POST", place, data=b"three ")
        assert status == 202
        await until(lambda: world.front.heard == b"one two three")
        assert world.front.said.count("UtteranceSay") == 3
        for text, words in (("", "1 to 4000"), ("x" * 5_000, "1 to 4000")):
            assert words in (await world.told("/human", sid | {"text": text}))["msg"]
        assert "nobody thinks" in (await world.told("/human", sid | {"type": "chat"}))["msg"]
        status, said, _ = await world.ask("POST", place, data=b"\xff")
        assert (status, "UTF-8" in said) == (400, True)
        await until(lambda: world.front.said.count("UtteranceSay") == 3)
        told = await world.told("/human", sid | {"text": "now", "interrupt": True})
        assert told["code"] == 0
        await until(lambda: world.front.heard.endswith(b"now"))
        assert "SessionInterrupt" in world.front.said

    run(body)


def test_livetalkings_routes_say_what_is_wrong() -> None:
    async def body(world: World) -> None:
        nobody = {"sessionid": 7}
        for path in ("/is_speaking", "/interrupt_talk", "/human", "/record", "/set_audiotype"):
            assert await world.told(path, nobody) == {"code": -1, "msg": "no such session"}
        told = await world.told("/offer", {"sdp": "garbage", "type": "offer"})
        assert told == {"code": -1, "msg": "this is no offer in SDP"}
        told = await world.told("/offer", {"type": "offer"})
        assert told["msg"].startswith("the request cannot be read: ")
        told = await world.told("/humanaudio", {"no": "form"})
        assert told == {"code": -1, "msg": "this is no form (multipart/form-data)"}
        world.front.refuse = 503
        told = await world.told("/offer", {"sdp": await world.browser().offer()})
        assert told == {"code": -1, "msg": "not now"}
        assert world.load.failed["webrtc"] == 0

    run(body)


# ---------------------------------------------------------------- what is refused
VIDEO, H264 = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n", "a=rtpmap:96 H264/90000\r\n"
BAD_OFFERS = {
    "garbage": ("\x00\xff garbage", 400, "no offer in SDP"),
    "empty": ("", 400, "no offer in SDP"),
    "large": ("v=0\r\n" + "a=x\r\n" * 20_000, 413, "too large"),
    "many lines": ("v=0\r\n" + "\r\n" * 3_000, 400, "no offer in SDP"),
    "nothing asked": ("v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n", 400, "no picture"),
    "no H.264": (f"v=0\r\n{VIDEO}a=rtpmap:96 VP8/90000\r\n", 400, "no H.264"),
    "no ICE": (f"v=0\r\n{VIDEO}{H264}", 400, "no ICE"),
    "half of one": (f"v=0\r\n{VIDEO}{H264}a=ice-ufrag:abcd\r\n", 400, "cannot be answered"),
    "many": ("v=0\r\n" + VIDEO * 5, 400, "more than one picture"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_OFFERS)
def test_an_offer_that_cannot_be_is_one_line(what: str) -> None:
    sdp, expected, words = BAD_OFFERS[what]

    async def body(world: World) -> None:
        status, text, _ = await world.ask(
            "POST", "/whep", sdp.encode("latin-1"), Content_Type="application/sdp"
        )
        assert status == expected, text
        assert words in text
        assert text.count("\n") == 1
        await until(lambda: world.peers == 0 and world.front.open == 0)
        assert (world.load.refused["webrtc"], world.load.failed["webrtc"]) == (1, 0)

    run(body)


@pytest.mark.parametrize(("status", "retry"), [(401, None), (403, None), (429, "2"), (503, "2")])
def test_who_is_refused_by_a_front_is_told(status: int, retry: str | None) -> None:
    async def body(world: World) -> None:
        world.front.refuse = status
        offer = await world.browser().offer()
        trace = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01", "tracestate": "a=1"}
        got, text, heads = await world.ask("POST", "/whep", offer, **SDP, **SHOWN, **trace)
        assert (got, text, heads.get("Retry-After")) == (status, "not now\n", retry)
        shown = {"Authorization": "Bearer sesame", **trace}
        assert world.front.heads[0].items() >= shown.items()
        await until(lambda: world.peers == 0)

    run(body)


def test_an_avatar_that_is_not_there() -> None:
    async def body(world: World) -> None:
        world.front.code = "unknown_avatar"
        offer = await world.browser().offer()
        assert (await world.ask("POST", "/whep?avatar=x", offer, **SDP))[:2] == (
            404,
            "no such\n",
        )

    run(body)


def test_who_may_ask() -> None:
    async def body(world: World) -> None:
        offer = await world.browser().offer()
        foreign = {"Origin": "https://evil.example", **SHOWN}
        got, text, heads = await world.ask("POST", "/whep", offer, **SDP, **foreign)
        assert (got, "origin" in text) == (403, True)
        assert "Access-Control-Allow-Origin" not in heads
        named = {"Host": "evil.example", **SHOWN}
        assert (await world.ask("POST", "/whep", offer, **SDP, **named))[0] == 403
        assert not world.front.heads
        good = {"Origin": "https://good.example"}
        got, _, heads = await world.ask("OPTIONS", "/whep", **good)
        assert (got, heads["Access-Control-Allow-Origin"]) == (204, "https://good.example")
        assert heads["Access-Control-Allow-Methods"] == "POST"
        assert "Authorization" in heads["Access-Control-Allow-Headers"]
        got, _, heads = await world.ask("OPTIONS", "/offer", **good)
        assert (got, heads["Access-Control-Allow-Origin"]) == (204, "https://good.example")
        assert (await world.ask("OPTIONS", "/offer", Origin="https://evil.example"))[0] == 403
        _, place = await world.watch(**good, **SHOWN)
        for shown in ({}, {"Authorization": "Bearer other"}):
            got, _, heads = await world.ask("DELETE", place, **shown)
            assert (got, heads["WWW-Authenticate"]) == (401, "Bearer")
            told = await world.told("/interrupt_talk", {"sessionid": place[6:]}, **shown)
            assert told["code"] == -1
        got, _, heads = await world.ask("DELETE", place, **good, **SHOWN)
        assert (got, heads["Access-Control-Allow-Origin"]) == (200, "https://good.example")
        assert "Location" in heads["Access-Control-Expose-Headers"]

    run(body, GUARDED)


def test_what_requests_may_not_be() -> None:
    async def body(world: World) -> None:
        _, place = await world.watch()
        for method, path, data, kind, expected in (
            ("POST", "/whep", b"v=0", "text/html", 415),
            ("PATCH", place, b"x", "application/sdp", 415),
            ("PATCH", place, b"a=ice-ufrag:another", "application/trickle-ice-sdpfrag", 422),
            ("PATCH", place, b"a=candidate:x", "application/trickle-ice-sdpfrag", 400),
            ("PATCH", place, b"a=mid:0\r\n", "application/trickle-ice-sdpfrag", 204),
            ("POST", f"{place}/audio", b"", "audio/wav", 415),
            ("POST", f"{place}/audio", b"RIFF garbage", "audio/wav", 415),
            ("POST", f"{place}/audio", bytes(11_000_000), "audio/wav", 413),
            ("GET", "/whep", b"", "text/plain", 405),
            ("GET", "/nothing", b"", "text/plain", 404),
        ):
            got, text, _ = await world.ask(method, path, data, Content_Type=kind)
            assert got == expected, (method, path, text)
        world.front.deaf = True
        many = [await world.ask("POST", f"{place}/audio", wav(tone(90.0))) for _ in range(6)]
        world.front.deaf = False
        assert [m[0] for m in many] == [202] * sayings.MOST_WAITING + [429] * 2

    run(body)


def test_no_more_than_so_many_may_be_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MOST_COMING", 2)

    async def body(world: World) -> None:
        offer = await world.browser().offer()
        for _ in range(2):
            assert (await world.ask("POST", "/whep", offer, **SDP))[0] == 201
        got, text, heads = await world.ask("POST", "/whep", offer, **SDP)
        assert (got, heads["Retry-After"]) == (503, "2")
        assert "try again later" in text

    run(body)


def test_no_network_has_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MOST_COMING", 4)
    monkeypatch.setattr(peers.canonical, "is_loopback", lambda address: False)

    async def body(world: World) -> None:
        offer = await world.browser().offer()
        got = [(await world.ask("POST", "/whep", offer, **SDP))[0] for _ in range(4)]
        assert got == [201, 201, 201, 429]

    run(body)


def test_a_busy_gateway_lets_nobody_in() -> None:
    async def body(world: World) -> None:
        now = [0.0, 0.0]
        use = world.adapter._peers._use = peers.Use(lambda: now[0], lambda: now[1])
        for seconds, used in ((1, 1.0), (2, 1.9), (3, 2.8)):
            now[:] = [seconds, used]
            use.look()
        offer = await world.browser().offer()
        got, text, heads = await world.ask("POST", "/whep", offer, **SDP)
        assert (got, "no time" in text, heads["Retry-After"]) == (503, True, "2")
        for seconds in (4, 5):
            now[:] = [seconds, 2.9]
            use.look()
        assert use.share == pytest.approx(0.05)
        assert (await world.ask("POST", "/whep", offer, **SDP))[0] == 201

    run(body)


# ---------------------------------------------------------------- faults
def test_a_peer_that_never_comes_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "CONNECT_S", 0.5)

    async def body(world: World) -> None:
        offer = await world.browser().offer()
        got, _, heads = await world.ask("POST", "/whep", offer, **SDP)
        assert (got, world.peers, world.front.open) == (201, 1, 1)
        await until(lambda: world.peers == 0 and world.front.open == 0)
        assert world.load.failed["webrtc"] == 1
        _, text, _ = await world.ask("DELETE", heads["Location"])
        assert text == "this session has ended: no connection came about within 0.5 s\n"

    run(body)


def test_a_peer_that_vanishes_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "SILENT_S", 3.0)

    async def body(world: World) -> None:
        browser, _ = await world.watch()
        other, _ = await world.watch()
        await asyncio.sleep(4.0)
        assert world.peers == 2, "who is there is not left"
        browser.vanish()
        await until(lambda: world.peers == 1 and world.front.open == 1)
        assert world.load.failed["webrtc"] == 1
        count = len(other.pictures)
        await until(lambda: len(other.pictures) > count + 10)

    run(body)


def test_what_strangers_send_to_its_port_hurts_no_peer() -> None:
    async def body(world: World) -> None:
        browser, _ = await world.watch()
        (ice,) = {t.receiver.transport.transport for t in browser.pc.getTransceivers()}
        (pair,) = ice._connection._nominated.values()
        chance = np.random.default_rng(5)
        magic = b"\x21\x12\xa4\x42"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for number in range(2_000):
                size = int(chance.choice([0, 1, 2, 12, 20, 100, 1400]))
                data = chance.bytes(size)
                if number % 4 == 0:  # as STUN begins
                    data = b"\0\1" + len(data).to_bytes(2, "big") + magic + chance.bytes(12) + data
                elif number % 4 == 1 and data:  # as DTLS, or RTP, begins
                    data = bytes([[22, 128][number % 2]]) + data[1:]
                stranger.sendto(data, pair.remote_addr)
                if number % 50 == 0:
                    await asyncio.sleep(0.001)
        count = len(browser.pictures)
        await until(lambda: len(browser.pictures) > count + 25)
        assert (world.peers, world.load.failed["webrtc"]) == (1, 0)
        (found,) = world.adapter._peers._peers.values()
        (theirs,) = {t.receiver.transport.transport for t in found._pc.getTransceivers()}
        assert theirs._connection._queue.qsize() < 5

    run(body)


def test_a_peer_that_closes_ends_its_session() -> None:
    async def body(world: World) -> None:
        browser, _ = await world.watch()
        await browser.pc.close()
        await until(lambda: world.peers == 0 and world.front.open == 0)
        assert world.load.failed["webrtc"] == 0

    run(body)


def test_a_front_that_dies_is_come_back_to() -> None:
    async def body(world: World) -> None:
        browser, place = await world.watch()
        await until(lambda: len(browser.pictures) > 5)
        world.front.die()
        await until(lambda: len(world.front.starts) == 2)
        count, last = len(browser.pictures), browser.pictures[-1]
        await until(lambda: len(browser.pictures) > count + 10)
        assert browser.pictures[-1] > last, "media time goes on"
        assert np.all(np.diff(browser.pictures) > 0)
        await world.ask("POST", f"{place}/audio", wav(tone(1.0)))
        await until(browser.is_loud)

    run(body)


def test_a_front_that_stays_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "AWAY_S", 1.0)

    async def body(world: World) -> None:
        browser, place = await world.watch()
        world.front.refuse = 503
        world.front.die()
        await until(lambda: world.peers == 0)
        assert world.load.failed["webrtc"] == 1
        _, text, _ = await world.ask("DELETE", place)
        assert text.startswith("this session has ended: gone for ")
        await until(lambda: browser.pc.connectionState == "closed")

    run(body)


def test_a_gateway_that_drains_ends_all() -> None:
    async def body(world: World) -> None:
        browser, _ = await world.watch()
        draining = asyncio.create_task(world.adapter.drain(1.0))
        await asyncio.sleep(0.1)
        offer = await world.browser().offer()
        got, text, _ = await world.ask("POST", "/whep", offer, **SDP)
        assert (got, text) == (503, "the server is going away\n")
        assert world.peers == 1
        await draining
        assert world.peers == 0
        await until(lambda: browser.pc.connectionState == "closed")
        assert world.load.failed["webrtc"] == 0

    run(body)


# ---------------------------------------------------------------- configuration
def test_pages_are_served_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("the page")
    (tmp_path / "client.js").write_text("code")
    (tmp_path.parent / "secret.txt").write_text("secret")

    async def body(world: World) -> None:
        assert (await world.ask("GET", "/"))[:2] == (200, "the page")
        assert (await world.ask("GET", "/client.js"))[:2] == (200, "code")
        for path in ("/../secret.txt", "/%2e%2e/secret.txt"):
            assert (await world.ask("GET", path))[0] in (403, 404)
        assert (await world.ask("POST", "/whep", b"", **SDP))[0] == 400

    run(body, ServeConfig(webrtc=WebRtc(pages=str(tmp_path))))


def test_what_clients_are_told_of_places() -> None:
    config = WebRtc(
        addresses=("127.0.0.1",), public_address="192.0.2.7", udp_ports="41000-41999",
        ice_servers=("stun:127.0.0.1:1",),
    )  # fmt: skip

    async def body(world: World) -> None:
        got, answer, heads = await world.ask("POST", "/whep", await world.browser().offer(), **SDP)
        assert got == 201
        found = [line.split() for line in answer.splitlines() if line.startswith("a=candidate")]
        assert {line[4] for line in found} == {"192.0.2.7"}
        assert all(41_000 <= int(line[5]) <= 41_999 for line in found)
        assert heads["Link"] == '<stun:127.0.0.1:1>; rel="ice-server"'

    run(body, ServeConfig(webrtc=config))


def test_ports_that_have_run_out() -> None:
    config = ServeConfig(webrtc=WebRtc(udp_ports="42500-42500"))

    async def body(world: World) -> None:
        _, place = await world.watch()
        got, text, _ = await world.ask("POST", "/whep", await world.browser().offer(), **SDP)
        assert (got, "no port" in text) == (503, True)
        await world.ask("DELETE", place)
        await until(lambda: world.peers == 0)
        await world.watch()

    run(body, config)


def test_candidates_of_strangers_are_asked_for_nothing_unless_there_is_help() -> None:
    text = (
        "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=rtpmap:96 H264/90000\r\na=ice-ufrag:abcd\r\n"
        "a=candidate:1 1 udp 1 192.0.2.1 5000 typ host\r\n"
        "a=candidate:1 1 udp 1 0d8.local 5000 typ host\r\na=end-of-candidates\r\n"
    )
    assert "candidate" not in offers.read(text, helped=False).sdp
    helped = offers.read(text, helped=True).sdp
    assert "192.0.2.1" in helped
    assert ".local" not in helped
    with pytest.raises(PeerError, match="more than 64 candidates"):
        offers.read(text + "a=candidate:1 1 udp 1 192.0.2.1 5000 typ host\r\n" * 65, helped=True)


# ---------------------------------------------------------------- parts
def test_media_time() -> None:
    now = [100.0]
    timeline = Timeline(lambda: now[0])
    now[0] = 100.5  # the first moment comes late
    assert timeline.see(2_000_000) == 500_000
    now[0] = 100.52
    assert timeline.see(2_040_000) == 540_000, "distances are the session's"
    assert timeline.until(540_000) == pytest.approx(0.0)
    now[0] = 100.6
    assert timeline.see(2_080_000) == 580_000
    assert timeline.until(620_000) == pytest.approx(0.0), "as early as what came the earliest"
    timeline.begin_again()
    now[0] = 103.0
    assert timeline.see(0) == 3_000_000, "another session goes on in the same time"
    assert timeline.see(40_000) == 3_040_000


def test_pictures_begin_with_a_key_frame() -> None:
    async def body() -> None:
        asked = []
        track = PictureTrack(Timeline(), lambda: asked.append(1))
        assert not track.put(b"\0\0\1a", 0, True), "nobody is there"
        track.begun.set()
        assert not track.put(b"\0\0\1a", 40_000, False)
        assert track.put(b"\0\0\1b", 80_000, True)
        assert track.put(b"\0\0\1c", 120_000, False)
        packet = await track.recv()
        assert (bytes(packet), packet.pts) == (b"\0\0\1b", 7_200)
        for number in range(tracks.MOST_PICTURES + 5):
            track.put(b"\0\0\1d", 160_000 + number, False)
        assert asked == [1], "what has waited for too long is left out, up to a key frame"
        assert not track.put(b"\0\0\1e", 200_000, False)
        assert track.put(b"\0\0\1f", 240_000, True)
        assert bytes(await track.recv()) == b"\0\0\1f"

    asyncio.run(body())


class PlayedSender:
    """Of aiortc's, what is replaced."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.heard = 0

    async def _send_rtcp(self, packets: list[Any]) -> None:
        self.said += packets

    async def _handle_rtcp_packet(self, packet: Any) -> None:
        self.heard += 1


def test_reports_say_that_picture_and_sound_are_on_one_clock() -> None:
    async def body() -> None:
        timeline, heard = Timeline(), []
        moments = []
        for made, sent in (
            (PictureTrack(timeline, lambda: None), 1_000_000),
            (SoundTrack(timeline), 1_060_000),
        ):
            sender: Any = PlayedSender()
            tracks.watch(sender, made, lambda: heard.append(1))
            info = RtcpSenderInfo(ntp_timestamp=7, rtp_timestamp=8, packet_count=1, octet_count=1)
            await sender._send_rtcp([RtcpSrPacket(ssrc=1, sender_info=info)])
            assert info.ntp_timestamp == 7, "nothing was sent yet"
            made.sent = sent
            await sender._send_rtcp([RtcpSrPacket(ssrc=1, sender_info=info)])
            moments.append(info.ntp_timestamp / 2**32)
            await sender._handle_rtcp_packet(None)
            assert (sender.heard, len(sender.said)) == (1, 2)
        assert len(heard) == 2
        assert moments[1] - moments[0] == pytest.approx(0.06, abs=0.005)

    asyncio.run(body())


def test_sound_is_continuous_and_in_its_time() -> None:
    async def body() -> None:
        now = [0.0]
        track = SoundTrack(Timeline(lambda: now[0]))
        decoder: Any = av.CodecContext.create("libopus", "r")

        async def packet() -> tuple[int, float]:
            """Its time stamp, and how loud it is."""
            now[0] += 0.02
            made = await track.recv()
            heard = [f.to_ndarray() for f in decoder.decode(av.Packet(bytes(made)))]
            return made.pts, max(float(np.abs(h / 32768).max()) for h in heard)

        found = [await packet() for _ in range(10)]
        begin = found[-1][0] + PACKET
        at = begin * 1_000_000 // RATE
        track.put(tone(0.04).tobytes(), at + 40_000)  # after two packets of silence
        track.put(tone(0.04).tobytes(), at + 80_000)
        track.end()
        found += [await packet() for _ in range(12)]
        pts = [p for p, _ in found]
        assert np.all(np.diff(pts) == PACKET)
        loud = [p for p, level in found if level > 0.05]
        assert begin + 2 * PACKET <= loud[0] <= begin + 3 * PACKET
        assert begin + 5 * PACKET <= loud[-1] <= begin + 6 * PACKET
        assert found[-1][1] < 1e-3

    asyncio.run(body())


def test_a_voice_is_told_from_silence() -> None:
    voice = Voice()
    noise = np.random.default_rng(1)
    quiet = [noise.integers(-40, 40, PACKET).astype(np.int16) for _ in range(100)]
    assert all(voice.hear(piece) == [] for piece in quiet)
    said = voice.hear(tone(0.02))
    assert voice.open
    assert hearing.BEFORE_S - 0.03 < sum(map(len, said)) / RATE - 0.02 < hearing.BEFORE_S + 0.03
    assert [len(p) for p in voice.hear(tone(0.02))] == [PACKET]
    count = 0
    while voice.open:
        voice.hear(quiet[count])
        count += 1
    assert count * 0.02 == pytest.approx(hearing.QUIET_S, abs=0.03)


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("flac", "flac"), ("ogg", "libopus"), ("mp3", "libmp3lame"), ("matroska", "libopus")],
)
def test_recordings_of_several_kinds(kind: str, codec: str) -> None:
    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(1.0)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    heard = np.concatenate(list(hearing.opened(out.getvalue())))
    assert len(heard) == pytest.approx(RATE, abs=3_000)
    assert np.abs(heard).max() > 6_000


@pytest.mark.parametrize(("rate", "channels"), [(1, 1), (3_999, 1), (400_000, 1), (8_000, 9)])
def test_recordings_that_nobody_makes(rate: int, channels: int) -> None:
    with pytest.raises(PeerError, match=r"the recording (has|cannot|holds)"):
        for _ in hearing.recording(wav(np.zeros(5_000 * channels, np.int16), rate, channels)):
            pass


def test_recordings_that_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "MOST_S", 0.5)
    with pytest.raises(PeerError, match="is longer than"):
        for _ in hearing.recording(wav(tone(1.0))):
            pass
