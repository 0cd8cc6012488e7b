# SPDX-License-Identifier: Apache-2.0
"""How a run divides recordings among workers, tries again and gives up; workers play a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from itertools import pairwise

import pytest

from lipsync_fast.batch import run as run_module
from lipsync_fast.batch.run import Lost, Run
from lipsync_fast.batch.tasks import Outcome, Recording
from lipsync_fast.errors import OutputError

Plays = Callable[[Recording, int], Outcome | str]
"""What comes of a recording's n-th try; a text: its worker dies of that."""


def recording(line: int, avatar: str = "anna") -> Recording:
    return Recording(line=line, audio=f"{line}.wav", avatar=avatar, out=f"{line}.mp4")


def made(each: Recording, tries: int = 1) -> Outcome:
    return Outcome(line=each.line, state="made", frames=25)


class Script:
    """Workers that do what a function says, one step each time that they are waited for."""

    def __init__(self, count: int, plays: Plays) -> None:
        self._busy: dict[int, Recording | None] = dict.fromkeys(range(count))
        self._plays, self._next = plays, count
        self.given: list[tuple[int, Recording]] = []
        self.tries: Counter[int] = Counter()

    def idle(self) -> Collection[int]:
        return [number for number, each in self._busy.items() if each is None]

    def give(self, worker: int, recording: Recording) -> None:
        assert self._busy[worker] is None, "a worker has one recording at a time"
        assert recording.line not in [e.line for e in self._busy.values() if e], "made twice"
        self._busy[worker] = recording
        self.given.append((worker, recording))
        self.tries[recording.line] += 1

    def wait(self, seconds: float) -> list[Outcome | Lost]:
        ends: list[Outcome | Lost] = []
        for number, each in list(self._busy.items()):
            if each is None:
                continue
            end = self._plays(each, self.tries[each.line])
            if isinstance(end, str):
                del self._busy[number]
                self._busy[self._next] = None
                self._next += 1
                ends.append(Lost(recording=each, reason=end))
            else:
                self._busy[number] = None
                ends.append(end)
        return ends

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "PAUSE_S", 0.0)


def test_a_worker_keeps_to_its_avatar() -> None:
    recordings = [recording(n, "anna" if n % 2 else "bob") for n in range(1, 21)]
    workers = Script(2, made)
    Run(recordings, 0).go(workers)
    avatars = {w: [r.avatar for n, r in workers.given if n == w] for w in (0, 1)}
    assert sorted(r.line for _, r in workers.given) == list(range(1, 21))
    changes = sum(a != b for each in avatars.values() for a, b in pairwise(each))
    assert changes <= 1, "an avatar is opened once, not for each recording"


def test_a_failed_one_never_stops_the_rest_and_is_not_tried_again() -> None:
    def plays(each: Recording, tries: int) -> Outcome | str:
        if each.line == 2:
            return Outcome(line=2, state="failed", error="2.wav: no such file")
        return made(each)

    work, workers = Run([recording(n) for n in range(1, 6)], 3), Script(2, plays)
    work.go(workers)
    assert [end.state for end in work.ends()] == ["made", "failed", "made", "made", "made"]
    assert work.ends()[1].error == "2.wav: no such file"
    assert work.ends()[1].tries == 1


def test_what_passes_is_tried_again_so_many_times() -> None:
    def plays(each: Recording, tries: int) -> Outcome | str:
        if each.line == 1 or (each.line == 2 and tries <= 2):
            return Outcome(line=each.line, state="failed", error="busy", passes=True)
        return made(each)

    told: list[str] = []
    work = Run([recording(1), recording(2)], 2, on_retry=lambda each, why: told.append(each.out))
    work.go(Script(1, plays))
    assert [(end.state, end.tries) for end in work.ends()] == [("failed", 3), ("made", 3)]
    assert sorted(told) == ["1.mp4", "1.mp4", "2.mp4", "2.mp4"]


def test_what_a_dead_worker_had_in_hand_is_done_by_another() -> None:
    def plays(each: Recording, tries: int) -> Outcome | str:
        return "its worker was killed" if each.line in (3, 4) and tries == 1 else made(each)

    work, workers = Run([recording(n) for n in range(1, 9)], 1), Script(3, plays)
    work.go(workers)
    assert work.count("made") == 8
    assert [end.tries for end in work.ends()] == [1, 1, 2, 2, 1, 1, 1, 1]


def test_one_that_kills_its_workers_is_given_up() -> None:
    def plays(each: Recording, tries: int) -> Outcome | str:
        return "its worker was killed (SIGSEGV)" if each.line == 1 else made(each)

    work = Run([recording(n) for n in range(1, 5)], 2)
    work.go(Script(1, plays))
    first, *others = work.ends()
    assert (first.state, first.error) == ("failed", "its worker was killed (SIGSEGV), 3 times")
    assert {end.state for end in others} == {"made"}


def test_a_full_disk_ends_the_run_and_the_summary_says_what_waits() -> None:
    def plays(each: Recording, tries: int) -> Outcome | str:
        if each.line < 3:
            return made(each)
        return Outcome(line=each.line, state="failed", error="no space left", stops=True)

    work = Run([recording(n) for n in range(1, 6)], 3)
    with pytest.raises(OutputError, match="no space left"):
        work.go(Script(1, plays))
    assert [end.state for end in work.ends()] == ["made", "made", "waiting", "waiting", "waiting"]


def test_a_secret_in_a_url_is_in_no_summary() -> None:
    each = Recording(line=1, audio="https://h/a.wav?sig=secret", avatar="anna", out="a.mp4")
    work = Run([each], 0)
    work.go(Script(1, made))
    assert work.ends()[0].audio == "https://h/a.wav"
