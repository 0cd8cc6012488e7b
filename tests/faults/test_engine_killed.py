# SPDX-License-Identifier: Apache-2.0
"""Engines that die or stand still in the middle of their work."""

from __future__ import annotations

import itertools
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from engines import DEADLINE_S, Engine, Host, jobs_of, noise
from numpy.typing import NDArray

import lipsync_fast
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.ipc.control import Heartbeat, Ready
from lipsync_fast.ipc.messages import Job, Status

Work = dict[int, tuple[Job, NDArray[np.float32]]]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "control")
    yield made
    made.close()


@pytest.fixture(scope="module")
def rendered(tiny_avatar: Path) -> tuple[list[bytes], Manifest]:
    """Five seconds of speech, as a rendering has it."""
    with lipsync_fast.open(tiny_avatar, backend="cpu", threads=2) as avatar:
        return [f.jpeg for f in avatar.render(noise(5.0), 16_000)], avatar.manifest


def work(manifest: Manifest) -> Work:
    return dict(enumerate(jobs_of(noise(5.0), manifest.audio, manifest.avatar_frame)))


def collect(engine: Engine, left: Work, got: dict[int, bytes], count: int) -> None:
    """Take so many answers, each to a job that is still owed."""
    for _ in range(count):
        answer, jpeg = engine.answer()
        assert answer.status == Status.MADE
        del left[answer.number]  # KeyError: answered twice
        got[answer.number] = jpeg


def test_a_successor_answers_what_a_dead_engine_owes(
    host: Host, tiny_avatar: Path, rendered: tuple[list[bytes], Manifest]
) -> None:
    """Killed again and again in mid-work: every frame once, and the same bytes."""
    wanted, manifest = rendered
    left, got = work(manifest), dict[int, bytes]()
    avatars = {"tiny": str(tiny_avatar)}
    engine, spare = host.ready(avatars), host.ready(avatars)
    for after in (3, 11, 1):
        for job, pcm in left.values():
            engine.submit(job, pcm)
        collect(engine, left, got, after)
        engine.kill()
        for answer, jpeg in engine.received():  # what it said before it died, holds
            del left[answer.number]
            got[answer.number] = jpeg
        engine, spare = spare, host.ready(avatars)
    for job, pcm in left.values():
        engine.submit(job, pcm)
    collect(engine, left, got, len(left))
    assert [got[k] for k in range(len(wanted))] == wanted


def test_rings_are_not_reused_by_another_generation(host: Host, tiny_avatar: Path) -> None:
    """A successor's rings are new: nothing of a dead engine's can come out of them."""
    avatars = {"tiny": str(tiny_avatar)}
    first = host.ready(avatars)
    for job, pcm in work_of_tiny(tiny_avatar).values():
        first.submit(job, pcm)
    first.kill()
    second = host.ready(avatars)
    assert second.answers.next() is None
    assert second.jobs.position == 0


def work_of_tiny(tiny_avatar: Path) -> Work:
    from lipsync_fast.avatars.package import AvatarPackage

    with AvatarPackage.open(tiny_avatar) as package:
        return dict(itertools.islice(work(package.manifest).items(), 20))


def test_a_stopped_engine_sends_no_beats(host: Host, tiny_avatar: Path) -> None:
    """So the supervisor sees that it hangs; continued, it goes on where it was."""
    engine = host.ready({"tiny": str(tiny_avatar)})
    host.expect(engine, Heartbeat)
    os.kill(engine.process.pid, signal.SIGSTOP)
    wait_until_stopped(engine.process.pid)
    host.take()
    host.seen.clear()
    poll = select.poll()
    poll.register(host.hub.fd, select.POLLIN)
    for _ in range(10):
        poll.poll(50)
        host.take()
    beats = sum(isinstance(message, Heartbeat) for _, message in host.seen)
    assert beats <= 1, "one may have been on its way"
    jobs = work_of_tiny(tiny_avatar)
    for job, pcm in jobs.values():
        engine.submit(job, pcm)
    os.kill(engine.process.pid, signal.SIGCONT)
    collect(engine, jobs, {}, len(jobs))
    host.expect(engine, Heartbeat)


def wait_until_stopped(pid: int) -> None:
    until = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert time.monotonic() < until
        time.sleep(0.005)


def test_engines_leave_when_the_supervisor_is_killed(tmp_path: Path, tiny_avatar: Path) -> None:
    script = textwrap.dedent(
        f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
        from pathlib import Path
        from engines import Host
        host = Host(Path({str(tmp_path / "control")!r}))
        engines = [host.ready({{"tiny": {str(tiny_avatar)!r}}}) for _ in range(2)]
        print(*(engine.process.pid for engine in engines), flush=True)
        time.sleep(600)
        """
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    with supervisor.stdout:
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        assert len(pids) == 2
        ends = [os.pidfd_open(pid) for pid in pids]
        os.kill(pids[1], signal.SIGSTOP)  # it hears of nothing
        supervisor.kill()
        supervisor.wait(DEADLINE_S)
    for end in ends:
        poll = select.poll()
        poll.register(end, select.POLLIN)
        assert poll.poll(int(DEADLINE_S * 1000)), "it is still there"
        os.close(end)


def test_killed_while_it_starts(host: Host, tiny_avatar: Path) -> None:
    """At any point of its start: nothing is left, and the next one starts."""
    for wait in (0.0, 0.05, 0.2, 0.5):
        engine = host.start({"tiny": str(tiny_avatar)})
        time.sleep(wait)  # not to wait for something: to be at a different point
        engine.kill()
    engine = host.start({"tiny": str(tiny_avatar)})
    assert host.expect(engine, Ready).capacity > 0
