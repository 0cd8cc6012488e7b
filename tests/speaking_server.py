# SPDX-License-Identifier: Apache-2.0
"""A scripted server that says what it hears, without a clock: for tests of plug-ins."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from PIL import Image
from scripted import STARTED, media, say
from websockets.sync.server import ServerConnection

from lipsync_fast_client.protocol import (
    MediaFlag,
    MediaType,
    SessionInterrupted,
    SessionOverloaded,
    UtteranceEnded,
    UtteranceStarted,
)

RATE = 16_000
PIECE = RATE // 25 * 2
"""Bytes of 40 ms."""


def jpeg() -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 100, 50)).save(made, "JPEG")
    return made.getvalue()


JPEG = jpeg()


def messages(connection: ServerConnection, heard: list[Any]) -> Iterator[Any]:
    """Sound as bytes, words by their type; up to session.stop."""
    for message in connection:
        heard.append(
            message if isinstance(message, bytes) else msgspec.json.decode(message)["type"]
        )
        if heard[-1] == "session.stop":
            return
        yield heard[-1]


def show(connection: ServerConnection, utterance: int, pcm: bytes) -> None:
    connection.send(media(MediaType.AUDIO, pcm, utterance=utterance))
    connection.send(media(MediaType.FRAME, JPEG, utterance=utterance))


def speaking(
    connection: ServerConnection,
    heard: list[Any],
    at: Callable[[int, int], str | None] = lambda utterance, piece: None,
) -> None:
    """What the server does, without a clock.

    Args:
        at: what goes wrong with a piece of an utterance, both counted from 1.
    """
    say(connection, STARTED)
    utterance, piece, refused = 0, 0, False
    for message in messages(connection, heard):
        if isinstance(message, bytes):
            if not piece:
                utterance += 1
                say(connection, UtteranceStarted(utterance=utterance))
            piece += 1
            fault = at(utterance, piece)
            if fault == "vanish":
                connection.socket.shutdown(socket.SHUT_RDWR)
                return
            if fault == "overloaded":
                refused = True
                say(connection, SessionOverloaded(retry_after_ms=100))
            if not refused and fault != "swallow":
                show(connection, utterance, message)
        elif message == "utterance.end":
            if not refused and piece:
                say(connection, UtteranceEnded(utterance=utterance, frames=piece, dropped=0))
            piece, refused = 0, False
        elif message == "session.interrupt":
            if piece:  # what was on its way
                show(connection, utterance, b"\7\7" * (PIECE // 2))
                say(connection, UtteranceEnded(utterance=utterance, frames=piece, dropped=0))
            piece = 0
            say(connection, SessionInterrupted(last_frame=1))
            connection.send(media(MediaType.FRAME, JPEG, flags=MediaFlag.IDLE))
