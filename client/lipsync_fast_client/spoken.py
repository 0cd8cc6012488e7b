# SPDX-License-Identifier: Apache-2.0
"""What an agent says, in order, until it has been heard: with the face, or without where it fails.

All sound that was given to the server is kept until it comes back. So nothing is lost where the
server cannot speak it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

F = TypeVar("F")


@dataclass
class Utterance(Generic[F]):
    """Sound that is said as a whole, mono s16le.

    Attributes:
        face: the server speaks it; where not, its sound goes on by itself.
        sound: what has not been heard yet.
        behind: what follows it in the pipeline, once it has been heard.
        ended: no more sound comes.
        begun: some of it was heard.
    """

    face: bool
    sound: deque[bytes] = field(default_factory=deque)
    behind: list[F] = field(default_factory=list)
    ended: bool = False
    begun: bool = False


class Spoken(Generic[F]):
    """Utterances in the order in which they were begun; the first one is being heard."""

    def __init__(self) -> None:
        self._all: deque[Utterance[F]] = deque()

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def head(self) -> Utterance[F] | None:
        """The one that is being heard."""
        return self._all[0] if self._all else None

    @property
    def open(self) -> Utterance[F] | None:
        """The one to which sound is added."""
        last = self._all[-1] if self._all else None
        return None if last is None or last.ended else last

    @property
    def owed(self) -> bool:
        """Whether the server has something of the first one that has not come back."""
        head = self.head
        return head is not None and head.face and (bool(head.sound) or head.ended)

    def add(self, pcm: bytes, face: bool) -> Utterance[F]:
        """Sound of the open utterance, or of a new one, which has a face or not."""
        utterance = self.open
        if utterance is None:
            utterance = Utterance(face)
            self._all.append(utterance)
        utterance.sound.append(pcm)
        return utterance

    def follow(self, behind: F) -> bool:
        """Something follows what was said so far.

        Returns:
            Whether there is any to wait for; else it is up to the caller.
        """
        if not self._all:
            return False
        self._all[-1].behind.append(behind)
        return True

    def heard(self, size: int) -> None:
        """So many bytes of the first utterance have come back with their pictures."""
        head = self.head
        if head is None:
            return
        head.begun = True
        while size > 0 and head.sound:
            piece = head.sound.popleft()
            if len(piece) > size:
                head.sound.appendleft(piece[size:])
            size -= len(piece)

    def shown(self) -> list[F]:
        """The server has done with the first utterance; gives what follows it.

        Where nothing of it has come, no picture could be made: it goes on without a face.
        """
        head = self.head
        if head is None or not head.face:
            return []
        if not head.begun:
            head.face, head.ended = False, True
            return []
        return self._all.popleft().behind

    def lose_newest(self) -> None:
        """The server does not speak the one that was begun last."""
        if self._all:
            self._all[-1].face = False

    def lose_all(self) -> None:
        """There is no server any more."""
        for utterance in self._all:
            utterance.face = False

    def faceless(self) -> Iterator[bytes | list[F]]:
        """What can go on now without a face: sound, and what follows where an utterance ends."""
        while self._all and not self._all[0].face:
            head = self._all[0]
            while head.sound:
                yield head.sound.popleft()
            if not head.ended:
                return
            self._all.popleft()
            yield head.behind

    def clear(self) -> None:
        """All of it is void."""
        self._all.clear()
