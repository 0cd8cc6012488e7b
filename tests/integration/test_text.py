# SPDX-License-Identifier: Apache-2.0
"""Clients that send text, over a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from spoken_texts import speaks_texts
from talking import BUSY_MACHINE, in_trio, say, speech, spoken, until, utterance, wait_for

import lipsync_fast
from lipsync_fast.client import (
    AudioFrame,
    ErrorMessage,
    SessionInterrupted,
    UtteranceEnded,
    UtteranceStarted,
)
from lipsync_fast.client.local import LocalServer
from lipsync_fast.errors import LipsyncError


@pytest.fixture(scope="module")
def server(tiny_avatar: Path) -> Iterator[LocalServer]:
    config = {
        "avatars": {"folders": [str(tiny_avatar.parent)], "default": tiny_avatar.name},
        "engines": {"gpus": "none", "spares": 0, **BUSY_MACHINE},
    }
    with speaks_texts() as speech, LocalServer({**config, **speech}) as made:
        yield made


@in_trio
async def test_a_text_is_shown_as_its_sound_would_be(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url, pace="burst", echo_audio=True) as session:
        await say(session, speech(0.8))
        ended, first = await utterance(session, 1)
    async with lipsync_fast.connect(server.url, pace="burst", echo_audio=True) as session:
        assert session.started.text is True
        await session.say_text("8 letter")
        again, second = await utterance(session, 1)
    assert (ended.frames, again.frames, again.reason) == (20, 20, "end")
    assert [f.jpeg for f in spoken(second)] == [f.jpeg for f in spoken(first)]
    sounds = [
        b"".join(e.pcm for e in all_ if isinstance(e, AudioFrame)) for all_ in (first, second)
    ]
    assert sounds[0] == sounds[1] == speech(0.8).tobytes()


@in_trio
async def test_texts_are_said_one_behind_the_other_at_any_rate(server: LocalServer) -> None:
    async with lipsync_fast.connect(
        server.url, pace="burst", sample_rate=48_000, channels=2, echo_audio=True
    ) as session:
        await session.say_text("12345", voice="1.0")
        await session.say_text("1234")
        (first, before), (second, behind) = await utterance(session, 1), await utterance(session, 2)
    assert (first.frames, second.frames) == (13, 10)
    for events, seconds in ((before, 0.5), (behind, 0.4)):
        pcm = b"".join(e.pcm for e in events if isinstance(e, AudioFrame))
        assert abs(len(pcm) / 2 / 48_000 - seconds) < 0.002


@in_trio
async def test_what_cannot_be_spoken_is_told_and_the_next_is_said(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url, pace="burst") as session:
        for text in ("refused", "broken", "silent", "1234"):
            await session.say_text(text)
        ended, before = await utterance(session, 1)
    told = [(e.code, e.fatal, e.message) for e in before if isinstance(e, ErrorMessage)]
    assert [(code, fatal) for code, fatal, _ in told] == [("speech_failed", False)] * 3
    assert "401" in told[0][2]
    assert "defect" not in told[1][2], "that is for the log"
    assert ended.frames == 10


@in_trio
async def test_a_text_that_breaks_off_is_shown_as_far_as_it_came(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url, pace="burst") as session:
        await session.say_text("123…")
        ended, before = await utterance(session, 1)
    assert ended.frames == 10
    assert any(isinstance(e, ErrorMessage) and "gone" in e.message for e in before)


@in_trio
async def test_an_interruption_ends_all_texts(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url) as session:
        await session.say_text("a text of thirty-two characters.")
        await session.say_text("and another")
        await until(session, UtteranceStarted)
        await session.interrupt()
        await until(session, SessionInterrupted)
        await session.say_text("12")
        started, before = await until(session, UtteranceStarted)
        assert not any(isinstance(e, UtteranceEnded) for e in before)
        ended, _ = await utterance(session, started.utterance)
        assert ended.frames == 5, "of the last one, and of no other"


@in_trio
async def test_texts_are_counted(server: LocalServer) -> None:
    async with (
        lipsync_fast.connect(server.url, pace="burst"),
        lipsync_fast.connect(server.url, pace="burst") as session,
    ):
        before = wait_for(server, lambda load: load.sessions == 2, "both are there")
        for text in ("refused", "silent", "1234"):
            await session.say_text(text)
        await utterance(session, 1)
        await session.say_text("halting")
        await until(session, UtteranceStarted)
        await session.interrupt()
        await until(session, SessionInterrupted)
    load = wait_for(server, lambda load: load.sessions == 0, "both have gone")
    texts = {name: count - before.texts.get(name, 0) for name, count in load.texts.items()}
    assert texts == {"failed": 2, "said": 1, "cut": 1}
    assert load.text_characters - before.text_characters == len("refused silent 1234 halting") - 3


@in_trio
async def test_the_clients_own_sound_is_left_out_meanwhile(server: LocalServer) -> None:
    async with lipsync_fast.connect(server.url, pace="burst") as session:
        await session.say_text("1234…")  # half a second goes by before its end
        await session.send(speech(1.0))
        await session.end_utterance()
        ended, _ = await utterance(session, 1)
        assert ended.frames == 13
        await say(session, speech(0.2))
        ended, _ = await utterance(session, 2)
        assert ended.frames == 5
        await session.send(speech(0.2))
        await session.say_text("no")
        refused, _ = await until(session, ErrorMessage)
        assert refused.code == "bad_request"


def test_an_engine_that_cannot_work_is_told_at_the_start(tiny_avatar: Path) -> None:
    wrong = {
        "nobody": "expected espeak, openai, piper, or module:function",
        "os:nothing": "cannot be loaded",
        "openai": "speech.url",
    }
    for engine, words in wrong.items():
        with pytest.raises(LipsyncError, match=words), LocalServer({"speech": {"engine": engine}}):
            pass


@in_trio
async def test_without_an_engine_texts_are_refused_in_words(tiny_avatar: Path) -> None:
    config = {
        "avatars": {"folders": [str(tiny_avatar.parent)], "default": tiny_avatar.name},
        "engines": {"gpus": "none", "spares": 0},
    }
    with LocalServer(config) as server:
        async with lipsync_fast.connect(server.url, pace="burst") as session:
            assert session.started.text is not True
            await session.say_text("hello")
            error, _ = await until(session, ErrorMessage)
    assert (error.code, error.fatal) == ("speech_failed", False)
    assert "speech.engine" in error.message
