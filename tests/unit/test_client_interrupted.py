# SPDX-License-Identifier: Apache-2.0
"""What an interruption has made void does not reach the client's user, and is not sent either."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import trio
from scripted import LIBRARIES, STARTED, media, run, say, scripted, until_stop
from websockets.sync.server import ServerConnection

import lipsync_fast_client
from lipsync_fast_client import (
    AudioFrame,
    ErrorMessage,
    Event,
    Pong,
    SessionInterrupted,
    SessionOverloaded,
    Stats,
    UtteranceEnded,
    UtteranceStarted,
    VideoFrame,
)
from lipsync_fast_client.events import media_event
from lipsync_fast_client.pending import PAUSE_S, Pending
from lipsync_fast_client.protocol import MediaFlag, MediaType


def told(event: Event) -> str:
    number = getattr(event, "utterance", "")
    return f"{type(event).__name__}{number}"


def old(connection: ServerConnection, utterance: int) -> None:
    """Everything that may still be on its way of an utterance."""
    say(connection, UtteranceStarted(utterance=utterance))
    connection.send(media(MediaType.AUDIO, b"\1\1", utterance=utterance))
    connection.send(media(MediaType.FRAME, b"j", utterance=utterance, flags=MediaFlag.FIRST))
    connection.send(media(MediaType.MOUTH, b"j", utterance=utterance, flags=MediaFlag.LAST))
    say(
        connection,
        UtteranceEnded(utterance=utterance, frames=2, dropped=0),
        SessionOverloaded(retry_after_ms=5),
    )


def idle(connection: ServerConnection) -> None:
    connection.send(media(MediaType.FRAME, b"j", flags=MediaFlag.IDLE))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("times", [1, 2])
def test_nothing_of_the_old_utterances_comes(library: str, times: int) -> None:
    others = (
        Stats(frames=1, late=0, skipped=0, queued_ms=0.0),
        Pong(id=1),
        ErrorMessage(code="engine_lost", message="it is being replaced", fatal=False),
    )

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        for _ in range(1 + 2 * times):  # sound, interruptions, pings
            connection.recv(20)
        for _ in range(times):
            old(connection, 1)
            idle(connection)
            say(connection, *others, SessionInterrupted(last_frame=3))
        old(connection, 2)
        connection.close(1000)

    async def client() -> list[str]:
        async with lipsync_fast_client.connect(server.url) as session:
            await session.send(b"\1\1")
            for _ in range(times):
                await session.interrupt()
                await session.ping(1)
            return [told(event) async for event in session]

    with scripted(script) as server:
        got = run(library, client)
    kept = ["VideoFrame0", "Stats", "Pong", "ErrorMessage", "SessionInterrupted"]
    new = ["UtteranceStarted2", "AudioFrame2", "VideoFrame2", "VideoFrame2", "UtteranceEnded2"]
    assert got == [*kept * times, *new, "SessionOverloaded"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_rest_of_what_is_being_sent_is_not(library: str) -> None:
    """A new utterance would begin with it."""
    much, read = bytes(40 << 20), threading.Event()

    def script(connection: ServerConnection, heard: list[Any]) -> None:
        say(connection, STARTED)
        connection.recv(20)
        say(connection, Pong(id="it has begun"))
        assert read.wait(60)
        until_stop(connection, heard)

    async def client() -> None:
        async with lipsync_fast_client.connect(server.url) as session:

            async def barge_in() -> None:
                assert await anext(session) == Pong(id="it has begun")
                if library == "trio":
                    nursery.start_soon(session.interrupt)
                    await trio.testing.wait_all_tasks_blocked()
                    read.set()
                else:
                    task = asyncio.create_task(session.interrupt())
                    await asyncio.sleep(0)
                    read.set()
                    await task

            if library == "trio":
                with trio.fail_after(60):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(session.send, much)
                        nursery.start_soon(barge_in)
            else:
                async with asyncio.timeout(60):
                    await asyncio.gather(session.send(much), barge_in())
            await session.send(b"\7\7")

    with scripted(script) as server:
        run(library, client)
        assert server.ended.wait(20)
    said = [m if isinstance(m, bytes) else m["type"] for m in server.heard]
    assert said[-3:] == ["session.interrupt", b"\7\7", "session.stop"]
    assert sum(len(m) for m in said if isinstance(m, bytes)) < len(much)


def picture(utterance: int) -> VideoFrame | AudioFrame:
    return media_event(media(MediaType.FRAME, b"", utterance=utterance))


def test_an_interruption_that_was_not_sent_voids_nothing() -> None:
    pending = Pending()
    pending.interrupted()
    assert not pending.sees(picture(1))
    pending.not_interrupted()
    assert pending.sees(picture(1))


def test_a_confirmation_that_nobody_asked_for_does_no_harm() -> None:
    pending = Pending()
    assert pending.sees(SessionInterrupted(last_frame=1))
    assert pending.sees(picture(1))
    pending.interrupted()
    assert not pending.sees(picture(1)), "it was not taken for the answer"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_is_unfinished_is_counted() -> None:
    pending = Pending(Clock())
    assert [pending.sound(), pending.sound(), pending.unfinished] == [True, True, 1]
    assert pending.ended()
    pending.said()
    pending.sound()
    assert pending.unfinished == 3
    pending.sees(UtteranceEnded(utterance=1, frames=1, dropped=0))
    pending.sees(ErrorMessage(code="unknown_utterance", message="", fatal=False))
    assert pending.unfinished == 1
    pending.sees(UtteranceEnded(utterance=2, frames=1, dropped=0, reason="quiet"))
    assert pending.unfinished == 0
    pending.sound()
    assert pending.unfinished == 1, "the one that the server has ended does not go on"
    pending.sees(SessionOverloaded(retry_after_ms=1))
    assert [pending.sound(), pending.unfinished] == [True, 0], "sent, and dropped by the server"
    pending.sees(UtteranceStarted(utterance=4))
    assert pending.unfinished == 1, "tried again after a pause"
    pending.interrupted()
    assert pending.unfinished == 0


@pytest.mark.parametrize("how", ["end", "interrupt", "pause"])
def test_the_rest_of_an_utterance_that_was_lost_is_dropped(how: str) -> None:
    clock = Clock()
    pending = Pending(clock)
    pending.sound()
    assert pending.lost() == 1
    assert not pending.sound()
    assert pending.back() == 0, "its loss was told already"
    assert not pending.sound()
    if how == "end":
        assert not pending.ended(), "the server knows of none"
    elif how == "interrupt":
        assert pending.interrupted()
    else:
        clock.now += PAUSE_S
        assert not pending.sound(), "not a pause yet"
        clock.now += 1.01 * PAUSE_S
    assert pending.sound()
    assert (pending.unfinished, pending.ended()) == (1, True)


def test_what_is_begun_while_nobody_is_there_is_counted_and_dropped() -> None:
    pending = Pending(Clock())
    assert pending.lost() == 0
    for _ in range(2):
        assert [pending.sound(), pending.sound(), pending.ended()] == [False] * 3
    assert [pending.said(), pending.interrupted(), pending.sound()] == [False] * 3
    assert pending.back() == 4
    assert not pending.sound(), "its beginning is missing"
    pending.ended()
    assert pending.sound()
    assert pending.sees(picture(1)), "an interruption that nobody heard voids nothing"
