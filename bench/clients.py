# SPDX-License-Identifier: Apache-2.0
"""The people of the soak test: those who behave, those who do not, and those of other protocols.

Each takes the server's addresses and a random generator, does one visit, and returns; what it saw
goes into ``Counts``. What is not expected of the server is noted in words.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
import trio
from other_clients import old_rpc, peer
from websockets.exceptions import WebSocketException
from websockets.trio.client import connect as connect_raw

import lipsync_fast
from lipsync_fast.audio.windows import frame_count
from lipsync_fast.benchmark.speech import PIECE, piece_due_ns, shipped_recording
from lipsync_fast.client import (
    ErrorMessage,
    Session,
    SessionError,
    SessionInterrupted,
    SessionOverloaded,
    UtteranceEnded,
    VideoFrame,
)
from lipsync_fast.timing import NS_PER_S, SAMPLE_RATE
from lipsync_fast_client.protocol import SUBPROTOCOL, SessionStart, encode

PATIENCE_S = 60.0
OLD_AUDIO = 30_720
"""Bytes of a window of the old protocol: 640 ms at 24 kHz."""


@dataclass
class Counts:
    """What was done, and what was not as it should be."""

    visits: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note_wrong(self, words: str) -> None:
        """Note what should not have been; the first hundred."""
        self.seen["wrong"] += 1
        if len(self.wrong) < 100:
            self.wrong.append(words)


@dataclass
class Place:
    """The server, and the sound that is spoken to it."""

    url: str
    http_url: str
    grpc: str = ""
    webrtc: str = ""
    counts: Counts = field(default_factory=Counts)
    pcm: bytes = field(default_factory=lambda: shipped_recording().tobytes())

    def some_speech(self, rng: random.Random, least_s: float, most_s: float) -> bytes:
        """A part of the recording."""
        size = 2 * int(SAMPLE_RATE * rng.uniform(least_s, most_s))
        start = 2 * rng.randrange(max(1, (len(self.pcm) - size) // 2))
        return self.pcm[start : start + size]


Visit = Callable[[Place, random.Random], Awaitable[None]]


async def _speak(session: Session, pcm: bytes) -> None:
    """Send sound on the clock on which it is spoken."""
    begun = time.monotonic_ns()
    for number, start in enumerate(range(0, len(pcm), 2 * PIECE)):
        due = begun + piece_due_ns(number)
        await trio.sleep(max(0, due - time.monotonic_ns()) / NS_PER_S)
        await session.send(pcm[start : start + 2 * PIECE])


async def _until_spoken(place: Place, session: Session, expected: int) -> bool:
    """Read until an utterance has ended, and count its frames; False when it is refused."""
    frames = late = 0
    async for event in session:
        if isinstance(event, VideoFrame) and event.utterance:
            frames += 1
            late += event.repeated
        elif isinstance(event, SessionOverloaded):
            place.counts.seen["overloaded"] += 1
            return False
        elif isinstance(event, UtteranceEnded):
            place.counts.seen["utterances"] += 1
            place.counts.seen["frames"] += frames
            place.counts.seen["late"] += event.dropped
            if event.frames != expected or frames < expected - event.dropped:
                place.counts.note_wrong(f"{frames} frames came, {event} ended, not {expected}")
            return True
    place.counts.note_wrong("the session ended in mid-utterance")
    return False


async def talker(place: Place, rng: random.Random) -> None:
    """Speaks one to three utterances in real time, and waits until each has been said.

    Where others speak already, it stops in mid-word, and leaves.
    """
    async with lipsync_fast.connect(place.url, echo_audio=rng.random() < 0.3) as session:
        for _ in range(rng.randint(1, 3)):
            pcm = place.some_speech(rng, 1.0, 6.0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_speak_whole, session, pcm)
                spoken = await _until_spoken(place, session, frame_count(len(pcm) // 2))
                nursery.cancel_scope.cancel()
            if not spoken:
                return


async def _speak_whole(session: Session, pcm: bytes) -> None:
    await _speak(session, pcm)
    await session.end_utterance()


async def interrupter(place: Place, rng: random.Random) -> None:
    """Sends much sound at once and cuts it off."""
    async with lipsync_fast.connect(place.url) as session:
        await session.send(place.some_speech(rng, 3.0, 8.0))
        heard = rng.randint(3, 40)
        async for event in session:
            heard -= isinstance(event, VideoFrame)
            if heard == 0:
                await session.interrupt()
            if isinstance(event, SessionInterrupted):
                break
        quiet = 10
        async for event in session:
            if isinstance(event, VideoFrame):
                quiet -= 1
                if event.utterance:
                    place.counts.note_wrong("a spoken frame behind session.interrupted")
            if quiet <= 0:
                return


async def burst(place: Place, rng: random.Random) -> None:
    """Has a short sound made as fast as it goes."""
    pcm = place.some_speech(rng, 0.3, 1.5)
    quality = rng.choice([None, None, 60])
    async with lipsync_fast.connect(place.url, pace="burst", quality=quality) as session:
        await session.send(pcm)
        await session.end_utterance()
        await _until_spoken(place, session, frame_count(len(pcm) // 2))


async def watcher(place: Place, rng: random.Random) -> None:
    """Looks at the idle avatar for a while; it gets every fourth picture at least."""
    left = rng.randint(50, 300)
    async with lipsync_fast.connect(place.url) as session:
        async for event in session:
            left -= isinstance(event, VideoFrame)
            if left <= 0:
                return


async def streamer(place: Place, rng: random.Random) -> None:
    """Speaks, and takes the pictures as a stream of H.264, with a key frame asked for midway."""
    pcm = place.some_speech(rng, 1.0, 3.0)
    units = keys = 0
    said = False
    async with (
        lipsync_fast.connect(place.url, codec="h264") as session,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_speak_whole, session, pcm)
        async for event in session:
            if isinstance(event, VideoFrame):
                if units == 0 and not event.key:
                    place.counts.note_wrong("a stream begins without a key frame")
                units, keys = units + 1, keys + event.key
                if units == 20:
                    await session.key_frame()
            said = said or isinstance(event, (UtteranceEnded, SessionOverloaded))
            if said and units >= 50:
                break
        nursery.cancel_scope.cancel()
    place.counts.seen["access units"] += units
    if units > 40 and keys < 2:
        place.counts.note_wrong(f"{keys} key frames in {units} pictures")


async def typist(place: Place, rng: random.Random) -> None:
    """Sends text, twice at once, and cuts it off now and then."""
    async with lipsync_fast.connect(place.url) as session:
        for text in ("Good morning, and welcome.", "How can I help you today?"):
            await session.say_text(text)
        ends = 0
        async for event in session:
            if isinstance(event, ErrorMessage):
                place.counts.note_wrong(f"a text: {event.code}: {event.message}")
                return
            if isinstance(event, SessionOverloaded):
                place.counts.seen["overloaded"] += 1
                return
            if isinstance(event, UtteranceEnded):
                place.counts.seen["texts"] += 1
                ends += 1
                if rng.random() < 0.3:
                    await session.interrupt()
            if ends == 2 or isinstance(event, SessionInterrupted):
                return


async def slow_reader(place: Place, rng: random.Random) -> None:
    """Speaks, and reads far too slowly."""
    async with lipsync_fast.connect(place.url) as session:
        await session.send(place.some_speech(rng, 2.0, 4.0))
        await session.end_utterance()
        with trio.move_on_after(rng.uniform(4, 10)):
            while True:
                await trio.sleep(0.7)
                await anext(session)


async def vanisher(place: Place, rng: random.Random) -> None:
    """Dies in the midst of speaking, by a reset."""
    async with connect_raw(place.url, subprotocols=[SUBPROTOCOL], compression=None) as connection:
        await connection.send(encode(SessionStart()))
        await connection.send(place.some_speech(rng, 1.0, 3.0))
        with trio.move_on_after(rng.uniform(0.1, 2.0)):
            while True:
                await connection.recv()
        about = connection.stream.socket  # type: ignore[attr-defined]
        about.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(connection.stream)


async def half_open(place: Place, rng: random.Random) -> None:
    """Begins an upgrade and does not end it."""
    address = urlsplit(rng.choice([place.url, place.http_url]))
    assert address.hostname is not None
    assert address.port is not None
    stream = await trio.open_tcp_stream(address.hostname, address.port)
    async with stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgr")
        await trio.sleep(rng.uniform(0.5, 4.0))


async def garbage(place: Place, rng: random.Random) -> None:
    """Says what is no message, and reads what the server thinks of it."""
    protocol = [SUBPROTOCOL] if rng.random() < 0.5 else None
    async with connect_raw(place.url, subprotocols=protocol, compression=None) as connection:
        for _ in range(rng.randint(1, 8)):
            if rng.random() < 0.5:
                await connection.send(rng.randbytes(rng.randint(0, 2000)))
            else:
                await connection.send("{" + "x" * rng.randint(0, 500))
            with trio.move_on_after(0.2):
                await connection.recv()


async def old_client(place: Place, rng: random.Random) -> None:
    """Requests of the old protocol, some at a time; each must be answered, in order."""
    avatar = b"default_model"
    async with connect_raw(place.url, compression=None) as connection:
        first = rng.randrange(10_000)
        numbers = list(range(first, first + rng.randint(3, 12)))
        sound = place.some_speech(rng, 2.0, 3.0)
        times = np.arange(OLD_AUDIO // 2) * 2 / 3
        samples = np.interp(times, np.arange(len(sound) // 2), np.frombuffer(sound, "<i2"))
        window = samples.astype("<i2").tobytes()
        for number in numbers:
            request = struct.pack("<I", len(avatar)) + avatar
            request += struct.pack("<II", number, len(window)) + window
            await connection.send(request)
        for number in numbers:
            reply = await connection.recv()
            while isinstance(reply, str):  # statistics come unasked
                reply = await connection.recv()
            place.counts.seen["old replies"] += 1
            if reply[0] != 1 or struct.unpack_from("<I", reply, 1)[0] != number:
                place.counts.note_wrong(f"request {number} was answered by {reply[:60]!r}")


async def http_visitor(place: Place, rng: random.Random) -> None:
    """Looks at the page and its neighbours."""
    address = urlsplit(place.http_url)
    assert address.hostname is not None
    assert address.port is not None
    path = rng.choice(["/", "/health", "/stats", "/metrics", "/v1/avatars"])
    stream = await trio.open_tcp_stream(address.hostname, address.port)
    async with stream:
        request = f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n"
        await stream.send_all(request.encode())
        answer = b"".join([chunk async for chunk in stream])
    if not answer.startswith(b"HTTP/1.1 200"):
        place.counts.note_wrong(f"GET {path}: {answer[:60]!r}")


VISITS: dict[str, tuple[Visit, int]] = {
    "talker": (talker, 6),
    "interrupter": (interrupter, 3),
    "burst": (burst, 1),
    "watcher": (watcher, 3),
    "slow reader": (slow_reader, 2),
    "vanisher": (vanisher, 3),
    "half open": (half_open, 2),
    "garbage": (garbage, 2),
    "old client": (old_client, 2),
    "streamer": (streamer, 2),
    "typist": (typist, 1),
    "old rpc": (old_rpc, 1),
    "peer": (peer, 2),
    "http": (http_visitor, 2),
}
"""Who comes, and how often compared with the others."""


POLITE = frozenset(VISITS) - {"slow reader", "vanisher", "half open", "garbage"}
"""Those for whom nothing may fail."""


async def come_and_go(place: Place, seed: int, until_ns: int) -> None:
    """One visit after the other."""
    rng = random.Random(seed)
    names, weights = list(VISITS), [weight for _, weight in VISITS.values()]
    while time.monotonic_ns() < until_ns:
        name = rng.choices(names, weights)[0]
        place.counts.visits[name] += 1
        try:
            with trio.move_on_after(PATIENCE_S) as scope:
                await VISITS[name][0](place, rng)
            if scope.cancelled_caught:
                place.counts.note_wrong(f"{name}: not over within {PATIENCE_S:g} s")
        except (SessionError, WebSocketException, OSError, trio.BrokenResourceError) as error:
            place.counts.seen[f"{name}: {type(error).__name__}"] += 1
            if name in POLITE:
                place.counts.note_wrong(f"{name}: {type(error).__name__}: {error}")
        except Exception as error:
            place.counts.note_wrong(f"{name}: {getattr(error, 'exceptions', error)!r}")
        await trio.sleep(rng.uniform(0.0, 1.5))
