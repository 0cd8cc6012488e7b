# SPDX-License-Identifier: Apache-2.0
"""A conversation of the client where nothing is installed but it, msgspec and websockets.

    python -P tests/client_alone.py

Where trio is installed too, the same under trio. Exit status 1 where something else was needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))

from scripted import STARTED, media, run, say, scripted, until_stop
from websockets.sync.server import ServerConnection

import lipsync_fast_client
from lipsync_fast_client import AudioFormatError, Session, UtteranceEnded, VideoFrame
from lipsync_fast_client.protocol import MediaType

ABSENT = "lipsync_fast", "numpy", "PIL", "soxr", "zmq", "av"


def script(connection: ServerConnection, heard: list[Any]) -> None:
    """Answers the first sound with a picture and the end of its utterance."""
    say(connection, STARTED)
    heard.append(connection.recv(20))
    connection.send(media(MediaType.FRAME, b"no picture", utterance=1))
    say(connection, UtteranceEnded(utterance=1, frames=1, dropped=0))
    until_stop(connection, heard)


async def talk(session: Session) -> None:
    """Say something, and look."""
    await session.send(b"\1\2")
    await session.end_utterance()
    picture, end = await anext(session), await anext(session)
    assert isinstance(picture, VideoFrame), picture
    assert isinstance(end, UtteranceEnded), end
    for what, kind, words in (
        (lambda: picture.image, ImportError, "VideoFrame.image needs Pillow: pip install pillow"),
        (lambda: session._encoded([1, 2]), AudioFormatError, "pcm of type list: expected bytes"),
    ):
        error = failure(what)
        assert isinstance(error, kind), error
        assert str(error).startswith(words), error


def failure(what: Callable[[], object]) -> Exception | None:
    """What it raises."""
    try:
        what()
    except Exception as error:
        return error
    return None


def main() -> None:
    """Talk, under whatever there is."""
    there = [name for name in ABSENT if find_spec(name) is not None]
    assert not there, f"not by itself: {there}"
    libraries = ["asyncio", *(["trio"] if find_spec("trio") is not None else [])]
    for library in libraries:

        async def client() -> None:
            async with lipsync_fast_client.connect(server.url) as session:
                await talk(session)

        with scripted(script) as server:
            run(library, client)
            assert server.ended.wait(20)
        kinds = [m["type"] for m in server.heard if isinstance(m, dict)]
        assert kinds == ["session.start", "utterance.end", "session.stop"], kinds
    missing = set(lipsync_fast_client.__all__) - set(dir(lipsync_fast_client))
    assert not missing, missing
    for name in lipsync_fast_client.__all__:
        getattr(lipsync_fast_client, name)
    print(f"the client by itself has talked under {' and '.join(libraries)}")


if __name__ == "__main__":
    main()
