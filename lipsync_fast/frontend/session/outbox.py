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


@dataclass(slots=True)
class Item:
    """A message that waits.

    Attributes:
        data: as it goes out.
        frame: a picture's sequence number; None for others.
        media: it may be left out when the client reads slowly, or is interrupted.
        sent: called once it is with the transport.
    """

    data: str | bytes
    frame: int | None = None
    media: bool = False
    sent: Callable[[], None] | None = None


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
        if not (self._items or self._sending) and self._socket.send_now(item.data):
            self._is_begun(item)
            self._is_sent(item)
            if self._socket.unsent:
                self._filled.ring()
            return
        self._items.append(item)
        if item.frame is not None:
            self._frames += 1
            if self._skipped is not None and self._frames > self._late_frames:
                self._skipped(self._leave_out(newest=item))
        elif len(self._items) - self._frames > MOST_MESSAGES:
            raise SocketClosedError(f"{MOST_MESSAGES} messages are left unread")
        self._filled.ring()

    def post_message(self, message: ServerMessage) -> None:
        """Send a text message when those before it are sent; see ``post``."""
        self.post(Item(encode(message)))

    def drop_media(self) -> None:
        """Leave out all media that waits."""
        self._leave_out(newest=None)

    def _leave_out(self, newest: Item | None) -> int:
        before = self._frames
        self._items = deque(i for i in self._items if not i.media or i is newest)
        self._frames = sum(i.frame is not None for i in self._items)
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
            if self.closing:
                return
            self._filled.clear()
            if not (self._items or self._socket.unsent):
                await self._filled.wait()

    async def _send_waiting(self) -> None:
        while self._items or self._socket.unsent:
            if self._socket.unsent:
                await self._socket.flush()
                continue
            item = self._items.popleft()
            self._frames -= item.frame is not None
            self._is_begun(item)
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
