# SPDX-License-Identifier: Apache-2.0
"""One run: which recording goes to which worker, what is tried again, and what came of all.

A run knows workers by numbers and does not ask where they are (``Workers``). A worker keeps to its
avatar as long as there is something to do for it. What may pass is tried again after a pause that
doubles; what was in the hands of a worker that has died goes to another one at once.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import msgspec

from lipsync_fast.batch.tasks import Outcome, Recording, State
from lipsync_fast.errors import OutputError

PAUSE_S, PAUSE_MOST_S = 1.0, 60.0
LOOK_S = 0.2
"""How long workers are waited for at a time."""


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """A worker has died, and with it what it was doing."""

    recording: Recording
    reason: str


class Workers(Protocol):
    """Those who do the work, wherever they are."""

    def idle(self) -> Collection[int]:
        """Numbers of those that have nothing to do; one that has died is never named again."""
        ...

    def give(self, worker: int, recording: Recording) -> None:
        """Have one that is idle make a recording."""
        ...

    def wait(self, seconds: float) -> list[Outcome | Lost]:
        """What has come to an end, after so many seconds at most.

        Raises:
            LipsyncError: nobody can work any more.
        """
        ...

    def close(self) -> None:
        """End all of them, at once."""
        ...


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one recording: a line of the summary.

    Attributes:
        seconds: of video.
        took_s: seconds of work, of the last try.
        tries: that were begun.
    """

    line: int
    out: str
    audio: str
    avatar: str
    state: State
    seconds: float = 0.0
    took_s: float = 0.0
    tries: int = 0
    error: str = ""
    warnings: tuple[str, ...] = ()


class Run:
    """The recordings of a list, and what became of each."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        retries: int,
        on_end: Callable[[Recording, Outcome], None] = lambda recording, outcome: None,
        on_retry: Callable[[Recording, str], None] = lambda recording, reason: None,
    ) -> None:
        """Have nothing done yet.

        Args:
            retries: how often a recording is tried again.
            on_end: told of each that is made, kept, or has failed for good.
            on_retry: told of each that is to be tried again, and why.
        """
        self.recordings = recordings
        self.outcomes: dict[int, Outcome] = {}
        self.tries: Counter[int] = Counter()
        self._by_line = {each.line: each for each in recordings}
        self._retries, self._on_end, self._on_retry = retries, on_end, on_retry
        self._queues: dict[str, deque[Recording]] = {}
        for each in recordings:
            self._queues.setdefault(each.avatar, deque()).append(each)
        self._paused: list[tuple[float, int]] = []
        self._avatars: dict[int, str] = {}

    @property
    def left(self) -> int:
        """Recordings that have no end yet."""
        return len(self.recordings) - len(self.outcomes)

    def go(self, workers: Workers, tick: Callable[[], None] = lambda: None) -> None:
        """Have all of them made.

        Args:
            tick: called several times a second.

        Raises:
            OutputError: no output can be written any more.
            LipsyncError: nobody can work any more.
        """
        while self.left:
            now = time.monotonic()
            while self._paused and self._paused[0][0] <= now:
                self._queue_first(self._by_line[heapq.heappop(self._paused)[1]])
            for worker in list(workers.idle()):
                recording = self._next(worker)
                if recording is None:
                    break
                self.tries[recording.line] += 1
                workers.give(worker, recording)
            for end in workers.wait(LOOK_S):
                if isinstance(end, Lost):
                    self._lost(end)
                else:
                    self._ended(end)
            tick()

    def ends(self) -> list[Ended]:
        """What became of each, in the order of the list."""
        return [self._end(each) for each in self.recordings]

    def count(self, state: State) -> int:
        """How many have come to this."""
        return sum(outcome.state == state for outcome in self.outcomes.values())

    # ------------------------------------------------------------ parts
    def _next(self, worker: int) -> Recording | None:
        """What a worker is to do: of its avatar, else of the one with most to do."""
        if not self._queues:
            return None
        avatar = self._avatars.get(worker, "")
        if avatar not in self._queues:
            avatar = max(self._queues, key=lambda name: len(self._queues[name]))
        self._avatars[worker] = avatar
        queue = self._queues[avatar]
        recording = queue.popleft()
        if not queue:
            del self._queues[avatar]
        return recording

    def _queue_first(self, recording: Recording) -> None:
        self._queues.setdefault(recording.avatar, deque()).appendleft(recording)

    def _lost(self, lost: Lost) -> None:
        line = lost.recording.line
        if line in self.outcomes:
            return
        if self.tries[line] > self._retries:
            error = f"{lost.reason}, {self.tries[line]} times"
            self._settle(Outcome(line=line, state="failed", error=error))
            return
        self._on_retry(lost.recording, lost.reason)
        self._queue_first(lost.recording)

    def _ended(self, outcome: Outcome) -> None:
        line = outcome.line
        if line in self.outcomes or line not in self._by_line:
            return
        if outcome.stops:
            raise OutputError(outcome.error)
        tries = self.tries[line]
        if outcome.passes and tries <= self._retries:
            self._on_retry(self._by_line[line], outcome.error)
            pause = min(PAUSE_MOST_S, PAUSE_S * 2.0 ** (tries - 1)) * random.uniform(0.75, 1.25)
            heapq.heappush(self._paused, (time.monotonic() + pause, line))
            return
        self._settle(outcome)

    def _settle(self, outcome: Outcome) -> None:
        self.outcomes[outcome.line] = outcome
        self._on_end(self._by_line[outcome.line], outcome)

    def _end(self, recording: Recording) -> Ended:
        from lipsync_fast.objects import is_url, shown_url
        from lipsync_fast.timing import FPS

        outcome = self.outcomes.get(recording.line) or Outcome(line=recording.line, state="waiting")
        audio = recording.audio
        return Ended(
            line=recording.line,
            out=recording.out,
            audio=shown_url(audio) if is_url(audio) else audio,
            avatar=recording.avatar,
            state=outcome.state,
            seconds=outcome.frames / FPS,
            took_s=outcome.took_s,
            tries=self.tries[recording.line],
            error=outcome.error,
            warnings=outcome.warnings,
        )
