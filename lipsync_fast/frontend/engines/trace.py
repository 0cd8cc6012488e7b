# SPDX-License-Identifier: Apache-2.0
"""Where the time of each spoken frame went, hop by hop, for measurements: one line each in a file.

A line is a JSON object: the session, the utterance, the frame's number in it, and moments on
CLOCK_MONOTONIC, in ns: ``asked`` (its sound was here, its job was made), ``in_ring``, ``taken`` and
``made`` (by the engine), ``read`` (its answer was here), ``shown`` (its turn had come), ``sent``
(the kernel had it).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from lipsync_fast.frontend.engines.engine_link import Pending
from lipsync_fast.frontend.playout.playout import Picture
from lipsync_fast.ipc.messages import Answer
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.front")
MOST_ASKED = 1000
"""Jobs of a session that are remembered; older ones were given up."""


class Hops(msgspec.Struct, kw_only=True):
    """A spoken frame; see the module."""

    session: int
    utterance: int
    frame: int
    asked: int
    in_ring: int = 0
    taken: int = 0
    made: int = 0
    read: int = 0
    shown: int = 0
    sent: int = 0


class Trace:
    """The file of a front; several append to one.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the process
        self._encoder = msgspec.json.Encoder()

    def write(self, hops: Hops) -> None:
        """Add a line; nothing more once the disk has refused one."""
        if self._file.closed:
            return
        try:
            self._file.write(self._encoder.encode(hops) + b"\n")
        except OSError as error:
            log.error("tracing has stopped", reason=error.strerror)
            self._file.close()


class SessionTrace:
    """The frames of one session on their way."""

    def __init__(self, trace: Trace, session: int) -> None:
        self._trace, self._session = trace, session
        self._asked: dict[int, tuple[int, Pending]] = {}
        self._read: dict[int, tuple[int, Answer]] = {}

    def asked(self, pending: Pending) -> None:
        """A job is about to be sent."""
        self._asked[pending.job.number] = time.monotonic_ns(), pending
        while len(self._asked) > MOST_ASKED:
            oldest = next(iter(self._asked))
            self._asked.pop(oldest)
            self._read.pop(oldest, None)

    def answered(self, answer: Answer) -> None:
        """It has come back."""
        self._read[answer.number] = time.monotonic_ns(), answer

    def shown(self, picture: Picture) -> Callable[[], None] | None:
        """A picture is about to be sent; call what is given when it is. None: no spoken frame."""
        asked = self._asked.pop(picture.job, None)
        read = self._read.pop(picture.job, None)
        if asked is None or read is None or picture.frame is None:
            return None
        (asked_ns, pending), (read_ns, answer) = asked, read
        hops = Hops(
            session=self._session,
            utterance=picture.utterance,
            frame=picture.frame,
            asked=asked_ns,
            in_ring=pending.sent_ns,
            taken=answer.taken_ns,
            made=answer.made_ns,
            read=read_ns,
            shown=time.monotonic_ns(),
        )

        def sent() -> None:
            hops.sent = time.monotonic_ns()
            self._trace.write(hops)

        return sent
