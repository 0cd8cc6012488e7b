# SPDX-License-Identifier: Apache-2.0
"""What waits for a client: order, and what is left out for one that reads slowly."""

from __future__ import annotations

import math

import pytest
import trio

from lipsync_fast.errors import SocketClosedError
from lipsync_fast.frontend.session.outbox import MOST_MESSAGES, Item, Outbox


class SlowSocket:
    """Takes a message when it is allowed to."""

    peer, port, kind, subprotocol = "x", 1, "stream", None

    def __init__(self, allowed: float) -> None:
        self.allowed = allowed
        self.got: list[str | bytes] = []

    async def receive(self) -> str | bytes:
        raise SocketClosedError

    async def send(self, data: str | bytes) -> None:
        while len(self.got) >= self.allowed:
            await trio.lowlevel.checkpoint()
        self.got.append(data)

    unsent = False

    def send_now(self, data: str | bytes) -> bool:
        return False

    async def flush(self) -> None:
        pass

    async def close(self, code: int = 1000, reason: str = "") -> None:
        pass


def frame(number: int) -> Item:
    return Item(b"%d" % number, number, True)


async def _all(socket: SlowSocket, outbox: Outbox) -> None:
    outbox.close()
    await outbox.run()


def test_in_order() -> None:
    socket = SlowSocket(math.inf)
    outbox = Outbox(socket, 5, lambda n: pytest.fail("none is left out"))
    for item in (Item("a"), frame(0), Item(b"sound", None, True), frame(1), Item("b")):
        outbox.post(item)
    trio.run(_all, socket, outbox)
    assert socket.got == ["a", b"0", b"sound", b"1", "b"]
    assert outbox.last_frame == 1


def test_a_slow_reader_goes_on_with_the_newest_picture_and_misses_no_message() -> None:
    socket = SlowSocket(0)
    skipped: list[int] = []
    outbox = Outbox(socket, 3, skipped.append)

    async def main() -> None:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.run)
                for number in range(10):
                    outbox.post(frame(number))
                    outbox.post(Item(f"note {number}"))
                    await trio.lowlevel.checkpoint()
                    assert outbox.frames <= 3
                socket.allowed = math.inf
                outbox.close()

    trio.run(main)
    frames = [int(m) for m in socket.got if isinstance(m, bytes)]
    assert frames == sorted(frames)
    assert frames[-1] == 9
    assert len(frames) + sum(skipped) == 10
    assert [m for m in socket.got if isinstance(m, str)] == [f"note {n}" for n in range(10)]


def test_dropped_media_is_not_sent() -> None:
    socket = SlowSocket(math.inf)
    outbox = Outbox(socket, 5, lambda n: None)
    outbox.post(frame(0))
    outbox.post(Item(b"sound", None, True))
    outbox.post(Item("kept"))
    outbox.drop_media()
    outbox.post(frame(1))
    assert outbox.frames == 1
    trio.run(_all, socket, outbox)
    assert socket.got == ["kept", b"1"]


def test_a_client_that_reads_nothing_is_given_up() -> None:
    outbox = Outbox(SlowSocket(0), 5, lambda n: None)
    for _ in range(MOST_MESSAGES):
        outbox.post(Item("x"))
    with pytest.raises(SocketClosedError):
        outbox.post(Item("x"))
