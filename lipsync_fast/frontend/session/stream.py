# SPDX-License-Identifier: Apache-2.0
"""A session's pictures as a stream of H.264: encoded by an engine, in the order of the outbox.

    picture, when its slot comes ─► place in the outbox, and to the engine ─► access unit, into it

All that is remembered of the stream is which access unit was encoded last and which one the client
gets last. What is left out on the way (a slow reader, an interruption, a lost engine) makes the
next picture a key frame; none is ever sent that the client could not show.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np

from lipsync_fast.frontend.engines.engine_link import Pending
from lipsync_fast.frontend.playout.playout import Flag, Picture
from lipsync_fast.frontend.services import Services
from lipsync_fast.frontend.session.outbox import Item, Outbox
from lipsync_fast.geometry import EMPTY
from lipsync_fast.ipc.messages import Answer, Encode, Status
from lipsync_fast.timing import NS_PER_S
from lipsync_fast_client.protocol import MediaHeader, pack_media

GIVE_UP_NS, GIVE_UP_BURST_NS = NS_PER_S, 60 * NS_PER_S
"""An access unit that was not made in so long is left out, and what waits behind it goes on; the
second in a burst, where it is no use to be early."""
MOST_AT_ONCE = 4
"""Pictures of a live stream that are being encoded; where that takes longer, some are left out."""
KEY_EVERY_NS = NS_PER_S // 2
"""A client gets a key frame for its asking this often at most."""
NOTHING = np.zeros(0, np.uint8)


@dataclass(slots=True)
class _Unit:
    """An access unit that is being made."""

    number: int
    after: int
    item: Item
    header: MediaHeader
    asked_ns: int
    size: int = 0


class StreamSender:
    """Has pictures encoded, and posts what comes of them; one thread.

    Args:
        outbox: where to.
        paced: pictures have moments, and may be left out.
        left_out: gets the number of pictures that were left out here.
        stride: of the slots in which nothing is said, one in so many is shown.
    """

    def __init__(
        self,
        services: Services,
        outbox: Outbox,
        paced: bool,
        left_out: Callable[[int], None],
        stride: Callable[[], int],
    ) -> None:
        self._pool, self._number = services.pool, services.numbers.session()
        self._paced = paced
        self._patience_ns = GIVE_UP_NS if paced else GIVE_UP_BURST_NS
        self._outbox, self._left_out, self._stride = outbox, left_out, stride
        self._alarm = services.timer.alarm(self._look)
        self._numbers = itertools.count(1)
        self._units: dict[int, _Unit] = {}
        self._asked = self._posted = 0
        """Numbers of the access units that were asked for, and posted, last."""
        self._broken = False
        """The client will not have what was asked for last."""
        self._reader_lags = False
        """Pictures were left out for a slow reader: until it takes one again, only one waits."""
        self._key_wanted, self._key_ns = False, 0

    def want_key(self) -> None:
        """The next picture is to be a key frame; soon, where there was one just before."""
        self._key_wanted = True

    def begin_anew(self) -> None:
        """The client may not have used what it was sent last: a key frame comes next."""
        self._broken = True

    def send(self, picture: Picture, header: MediaHeader, sent: Callable[[int], None]) -> None:
        """Encode a picture, and send it behind all that was posted.

        Args:
            header: of its message, but for its size and whether it is a key frame.
            sent: called when the transport has it, with the access unit's bytes.
        """
        busy = self._paced and len(self._units) >= MOST_AT_ONCE
        if busy or (self._reader_lags and self._outbox.frames):
            self._left_out(1)  # it was not encoded, so nothing builds on it
            return
        now_ns = time.monotonic_ns()
        asks = self._key_wanted and now_ns - self._key_ns >= KEY_EVERY_NS
        number, after = next(self._numbers), 0 if asks or self._broken else self._asked
        if asks:
            self._key_wanted, self._key_ns = False, now_ns
        dropped = partial(self._dropped, number)
        item = Item(None, header.sequence, True, chained=True, dropped=dropped)
        unit = self._units[number] = _Unit(number, after, item, header, now_ns)

        def taken() -> None:
            self._reader_lags = False
            sent(unit.size)

        item.sent = taken
        self._asked, self._broken = number, False
        self._outbox.post(item)
        if number in self._units:  # else all that waited was left out
            self._submit(picture, number, after)
            if self._alarm.due_ns is None:
                self._alarm.set(now_ns + self._patience_ns)

    def _submit(self, picture: Picture, number: int, after: int) -> None:
        appearance, part = picture.appearance, picture.jpeg
        assert appearance is not None
        assert appearance.coding is not None
        encode = Encode(
            self._number,
            0,
            number,
            after,
            picture.number,
            self._stride(),
            appearance.avatar,
            picture.avatar_frame,
            appearance.coding,
            picture.box if part is not None and picture.box is not None else EMPTY,
        )
        pixels = NOTHING if part is None else np.frombuffer(part, np.uint8)
        self._pool.submit(Pending(encode, pixels, self._answered, self._lost))

    # ------------------------------------------------------------ what comes of them
    def _answered(self, answer: Answer, data: memoryview) -> None:
        unit = self._units.pop(answer.number, None)
        if unit is None:
            return
        follows = 0 < unit.after == self._posted
        if answer.status != Status.MADE or not (answer.key or follows):
            self._lose(unit)
            return
        self._posted, unit.size = unit.number, len(data)
        flags = unit.header.flags | (Flag.KEY if answer.key else Flag.NONE)
        header = msgspec.structs.replace(unit.header, flags=flags, size=len(data))
        self._outbox.fill(unit.item, pack_media(header) + bytes(data))

    def _lost(self, encode: Encode) -> Encode | None:
        return encode if encode.number in self._units else None

    def _lose(self, unit: _Unit) -> None:
        """It is not made: go on without it."""
        self._broken = True
        self._left_out(1)
        self._outbox.withdraw(unit.item)

    def _dropped(self, number: int) -> None:
        """The outbox has left it out."""
        self._units.pop(number, None)
        self._broken = self._reader_lags = True

    def _look(self) -> None:
        """Give up what takes too long."""
        now_ns = time.monotonic_ns()
        for unit in list(self._units.values()):
            if now_ns - unit.asked_ns < self._patience_ns:
                break
            if self._units.pop(unit.number, None) is not None:
                self._lose(unit)
        first = next(iter(self._units.values()), None)
        if first is not None:
            self._alarm.set(first.asked_ns + self._patience_ns)

    def close(self) -> None:
        """The session has ended."""
        self._alarm.close()
        self._units.clear()
        self._pool.end_stream(self._number)
