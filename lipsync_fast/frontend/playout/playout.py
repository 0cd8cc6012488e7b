# SPDX-License-Identifier: Apache-2.0
"""What both playouts of a session (live.py, burst.py) have in common.

Sound, answers and the time go in; jobs and events come out. No input or output happens in it, so
that a test can play hours in a second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from lipsync_fast.arrays import F32
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.frontend.playout.utterance import Utterance
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Answer, Coding, Job, Look
from lipsync_fast.timing import FRAME_SAMPLES
from lipsync_fast_client.protocol import MediaFlag

Flag = MediaFlag
"""What a picture is."""


@dataclass(frozen=True, slots=True)
class Appearance:
    """What a session's pictures are made of.

    Attributes:
        manifest: the avatar's.
        avatar: the key under which engines know its version.
        look: how pictures are encoded.
        coding: of the stream that they are encoded into; None where each is one by itself.
    """

    manifest: Manifest
    avatar: str
    look: Look
    coding: Coding | None = None

    @property
    def kept(self) -> bool:
        """Whether frames may be kept, and be among those that are."""
        return self.coding is None


@dataclass(frozen=True, slots=True)
class Picture:
    """What to show in a slot.

    Attributes:
        number: of the slot, counted from the session's start.
        pts_ns: when it is shown, from the session's start.
        avatar_frame: index of the avatar's frame under it.
        flags: what it is.
        utterance: whose sound it shows; 0 for none.
        jpeg: the picture, as engines give it; None for the avatar's own.
        box: where the picture lies in the avatar's frame.
        frame: which 40 ms of the utterance are heard with it; None for none.
        ready_ns: when all sound that it sees had come (as late as the playout lets it matter).
        job: number of the job that made it; 0 where none did, or it is shown again.
        left_out: no picture was made: only what is heard in the slot is sent.
        unseen: the same, since the client wanted none then: it misses nothing.
        skipped: frames of the utterance before it that have no slot.
        appearance: what it is made of; None in tests that do not ask.
    """

    number: int
    pts_ns: int
    avatar_frame: int
    flags: Flag
    utterance: int
    jpeg: bytes | None
    box: Rect | None
    frame: int | None = None
    ready_ns: int = 0
    job: int = 0
    left_out: bool = False
    skipped: int = 0
    unseen: bool = False
    appearance: Appearance | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """The first frame of an utterance is shown."""

    utterance: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The last frame of an utterance was shown, or would have been.

    Attributes:
        quiet: it was ended since no more sound came, not by the client.
        left_out: frames that were not made, on purpose; they are not among those dropped.
    """

    utterance: int
    frames: int
    dropped: int
    quiet: bool = False
    left_out: int = 0


Event = Picture | Started | Ended


class Playout(Protocol):
    """A session's clock: sound and the time in, jobs and pictures out."""

    jobs: deque[tuple[Job, F32]]
    """Jobs to be sent, with the samples that they see; the caller takes them out."""
    late: int
    """Frames that were not there in time."""
    left_out: int
    """Frames that were not made, on purpose."""

    @property
    def avatar(self) -> str:
        """The key of the avatar's version that is shown."""
        ...

    @property
    def epoch(self) -> int:
        """Raised by each interruption."""
        ...

    @property
    def margin_ns(self) -> int:
        """From the moment that a frame's sound is there to its slot; 0 without slots."""
        ...

    def push_audio(self, pcm: F32, now_ns: int) -> int:
        """Sound, 16 kHz mono; the number of the utterance that it belongs to."""
        ...

    def end_utterance(self, now_ns: int, quiet: bool = False) -> None:
        """All of the utterance has come; without an open one nothing happens.

        Args:
            quiet: nobody has said so, but no more sound comes.
        """
        ...

    def speak(self, pcm: F32, now_ns: int) -> int:
        """A whole utterance, where none is open; its number."""
        ...

    def interrupt(self, now_ns: int) -> int:
        """Drop all that is to be said; the number of the last slot that was shown, or -1."""
        ...

    def change(self, appearance: Appearance) -> None:
        """Another avatar or look: from the next moment on in which nothing is spoken."""
        ...

    def answered(self, answer: Answer, jpeg: bytes) -> bool:
        """What an engine made of a job; what is void is ignored. True where a tick is due."""
        ...

    def lost(self, job: Job, now_ns: int) -> Job | None:
        """A job's engine is gone: the job as it is to be sent again, or None when it is void."""
        ...

    def tick(self, now_ns: int) -> list[Event]:
        """What is to be sent now."""
        ...

    @property
    def wake_ns(self) -> int | None:
        """When to tick next, whatever else happens; None when nothing is due."""
        ...

    @property
    def open(self) -> bool:
        """An utterance has begun and not been ended by the client."""
        ...

    @property
    def speaking(self) -> bool:
        """An utterance is open or not all shown."""
        ...

    @property
    def owes(self) -> bool:
        """Frames of what is being said can be made by now, and were not shown."""
        ...

    @property
    def heard(self) -> tuple[int, int]:
        """The number of the utterance that is open, and frames of sound that have come of it."""
        ...

    @property
    def queued_s(self) -> float:
        """Seconds of sound that have come and are not planned yet."""
        ...

    @property
    def latency_ms(self) -> float:
        """From a sound to the picture that shows it, as planned."""
        ...


class OnItsWay(Protocol):
    """An utterance that is being said, and its frame that is asked for next."""

    number: int
    sound: Utterance
    next: int
    quiet: bool


Spoken = TypeVar("Spoken", bound=OnItsWay)


class Speaker(Generic[Spoken]):
    """What every playout knows of the utterances that it was given and has not finished."""

    _utterances: deque[Spoken]

    def push_audio(self, pcm: F32, now_ns: int) -> int:
        """See ``Playout``."""
        raise NotImplementedError

    def end_utterance(self, now_ns: int, quiet: bool = False) -> None:
        """See ``Playout``."""
        raise NotImplementedError

    def speak(self, pcm: F32, now_ns: int) -> int:
        """A whole utterance, where none is open; its number."""
        number = self.push_audio(pcm[:0], now_ns)
        self._utterances[-1].sound.push(pcm)
        self.end_utterance(now_ns)  # so its beginning is planned when all of it is there
        return number

    @property
    def open(self) -> bool:
        """An utterance has begun and not been ended by the client."""
        return bool(self._utterances) and not self._utterances[-1].sound.ended

    @property
    def speaking(self) -> bool:
        """An utterance is open or not all shown."""
        return bool(self._utterances)

    @property
    def heard(self) -> tuple[int, int]:
        """The number of the utterance that is open, and frames of sound that have come of it."""
        if not self.open:
            return 0, 0
        last = self._utterances[-1]
        return last.number, last.sound.samples // FRAME_SAMPLES

    @property
    def queued_s(self) -> float:
        """Seconds of sound that have come and are not planned yet."""
        waiting = sum(s.sound.samples - s.next * FRAME_SAMPLES for s in self._utterances)
        return max(0, waiting) / 16_000
