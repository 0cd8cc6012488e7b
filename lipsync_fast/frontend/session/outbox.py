# SPDX-License-Identifier: Apache-2.0
"""What waits to be sent to one client, in order, and what is left out when it reads too slowly."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lipsync_fast.errors import SocketClosedError
from lipsync_fast.frontend.access.socket import Socket
from lipsync_fast.signals import WakeUp
from lipsync_fast_client.protocol import ServerMessage, encode

MOST_MESSAGES = 1000
"""Text messages that may wait; a client that leaves more unread is cut off."""


@dataclass(slots=True, eq=False)
class Item:
    """A message that waits.

    Attributes:
        data: as it goes out; None while it is being made (``Outbox.fill``): what comes behind it
            waits, too.
        frame: a picture's sequence number; None for others.
        media: it may be left out when the client reads slowly, or is interrupted.
        sent: called once it is with the transport.
        chained: a picture that is of no use without those before it.
        dropped: called when it was left out.
    """

    data: str | bytes | None
    frame: int | None = None
    media: bool = False
    sent: Callable[[], None] | None = None
    chained: bool = False
    dropped: Callable[[], None] | None = None


class Outbox:
    """Messages to a socket: sent at once where nothing waits and the socket can, else by ``run``.

    Posting never waits.

    Args:
        socket: where to.
        late_frames: pictures that may wait.
        skipped: with more, all media but the newest picture are left out, and this gets the number
            of pictures; None where none may be left out: then ``has_room`` is to be asked.
        room: called when one that had to wait was sent, and there is room.
    """

    def __init__(
        self,
        socket: Socket,
        late_frames: int,
        skipped: Callable[[int], None] | None,
        room: Callable[[], None] = lambda: None,
    ) -> None:
        self._socket, self._late_frames, self._skipped = socket, late_frames, skipped
        self._room = room
        self._items: deque[Item] = deque()
        self._frames = 0
        self._sending = False
        self._filled = WakeUp()
        self.last_frame = -1
        """Sequence number of the last picture that was sent."""
        self.closing = False

    @property
    def frames(self) -> int:
        """Pictures that wait."""
        return self._frames

    def post(self, item: Item) -> None:
        """Send a message when those before it are sent.

        Raises:
            SocketClosedError: the client does not read: give it up.
        """
        if self.closing:
            return
        if not (self._items or self._sending) and self._is_taken(item):
            if self._socket.unsent:
                self._filled.ring()
            return
        self._items.append(item)
        if item.frame is not None:
            self._frames += 1
            if self._skipped is not None and self._frames > self._late_frames:
                self._skipped(self._leave_out(newest=None if item.chained else item))
        elif len(self._items) - self._frames > MOST_MESSAGES:
            raise SocketClosedError(f"{MOST_MESSAGES} messages are left unread")
        self._filled.ring()

    def _is_taken(self, item: Item) -> bool:
        """Whether the socket has taken a message at once."""
        if item.data is None or not self._socket.send_now(item.data):
            return False
        self._is_begun(item)
        self._is_sent(item)
        return True

    def fill(self, item: Item, data: bytes) -> None:
        """An item that waits is made; nothing where it was left out meanwhile."""
        item.data = data
        self._go_on()

    def withdraw(self, item: Item) -> None:
        """An item that waits is not to be sent."""
        if item in self._items:
            self._items.remove(item)
            self._frames -= item.frame is not None
            self._go_on()

    def _go_on(self) -> None:
        """Send at once what is made and need not wait any more, as far as the socket can."""
        while self._items and not self._sending and self._is_taken(self._items[0]):
            item = self._items.popleft()
            self._frames -= item.frame is not None
            if item.frame is not None and self.has_room:
                self._room()
        self._filled.ring()

    def post_message(self, message: ServerMessage) -> None:
        """Send a text message when those before it are sent; see ``post``."""
        self.post(Item(encode(message)))

    def drop_media(self) -> None:
        """Leave out all media that waits."""
        self._leave_out(newest=None)

    def _leave_out(self, newest: Item | None) -> int:
        before, items = self._frames, self._items
        self._items = deque(i for i in items if not i.media or i is newest)
        self._frames = sum(i.frame is not None for i in self._items)
        for item in items:
            if item.dropped is not None and item.media and item is not newest:
                item.dropped()
        return before - self._frames

    def close(self) -> None:
        """End ``run`` when all that waits is sent."""
        self.closing = True
        self._filled.ring()

    @property
    def has_room(self) -> bool:
        """No more than half of the pictures wait that may."""
        return self._frames <= self._late_frames // 2

    async def run(self) -> None:
        """Send until closed.

        Raises:
            SocketClosedError: the client has gone.
        """
        while True:
            self._sending = True
            try:
                await self._send_waiting()
            finally:
                self._sending = False
            if self.closing and not self._items:
                return
            self._filled.clear()
            if not (self._is_ready or self._socket.unsent):
                await self._filled.wait()

    @property
    def _is_ready(self) -> bool:
        """The first that waits is made."""
        return bool(self._items) and self._items[0].data is not None

    async def _send_waiting(self) -> None:
        while self._is_ready or self._socket.unsent:
            if self._socket.unsent:
                await self._socket.flush()
                continue
            item = self._items.popleft()
            self._frames -= item.frame is not None
            self._is_begun(item)
            assert item.data is not None
            await self._socket.send(item.data)
            self._is_sent(item)
            if self.has_room:
                self._room()

    def _is_begun(self, item: Item) -> None:
        if item.frame is not None:
            self.last_frame = item.frame

    @staticmethod
    def _is_sent(item: Item) -> None:
        if item.sent is not None:
            item.sent()
