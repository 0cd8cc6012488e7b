# SPDX-License-Identifier: Apache-2.0
"""The engine as a process of its own: what it tells the supervisor, and what it does as told."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from engines import DEADLINE_S, Engine, Host, all_answers, jobs_of, noise, open_fds, own
from numpy.typing import NDArray

import lipsync_fast
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.config import Log
from lipsync_fast.ipc.control import (
    AvatarState,
    Bye,
    Drain,
    Heartbeat,
    Hello,
    LoadAvatar,
    PeerGone,
    Ready,
    Stop,
    UnloadAvatar,
)
from lipsync_fast.ipc.frame_store import FrameStore
from lipsync_fast.ipc.messages import Job, Status
from lipsync_fast.priority import lower_session


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "control")
    yield made
    made.close()


@pytest.fixture
def engine(host: Host, tiny_avatar: Path) -> Engine:
    return host.ready({"tiny": str(tiny_avatar)})


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_from_birth_to_frames(host: Host, tiny_avatar: Path) -> None:
    """Says hello, loads, measures, says ready, and makes what a rendering makes."""
    engine = host.start({"tiny": str(tiny_avatar)})
    hello = host.expect(engine, Hello)
    assert (hello.role, hello.pid, hello.device) == ("engine", engine.process.pid, "cpu")
    assert host.expect(engine, AvatarState) == AvatarState(name="tiny")
    assert host.expect(engine, Ready).capacity > 0
    engine.connect()
    with lipsync_fast.open(tiny_avatar, backend="cpu", threads=1) as avatar:
        wanted = [frame.jpeg for frame in avatar.render(noise(1.0), 16_000)]
        m = avatar.manifest
    for job, pcm in jobs_of(noise(1.0), m.audio, m.avatar_frame):
        engine.submit(job, pcm)
    got = all_answers(engine, len(wanted))
    assert [got[k][1] for k in range(len(wanted))] == wanted
    load = host.expect(engine, Heartbeat, lambda beat: beat.load.made == len(wanted)).load
    assert (load.waiting, load.in_flight, load.failed) == (0, 0, 0)
    assert load.cache_bytes["image halves"] > 0


def test_beats_when_idle(host: Host, engine: Engine) -> None:
    for _ in range(5):
        host.expect(engine, Heartbeat)


def test_avatars_come_and_go(host: Host, engine: Engine, tiny_avatar: Path, tmp_path: Path) -> None:
    host.hub.send(engine.name, LoadAvatar(name="second", path=str(tiny_avatar)))
    assert host.expect(engine, AvatarState) == AvatarState(name="second")
    engine.submit(own(1, 1, "second"))
    assert engine.answer()[0].status == Status.MADE
    host.hub.send(engine.name, LoadAvatar(name="none", path=str(tmp_path / "none")))
    state = host.expect(engine, AvatarState)
    assert state.name == "none"
    assert "no such avatar package" in state.error
    host.hub.send(engine.name, UnloadAvatar(name="second"))
    until(lambda: (engine.submit(own(1, 2, "second")), engine.answer())[1][0].reason != "")
    engine.submit(own(1, 3))
    assert engine.answer()[0].status == Status.MADE


def test_a_front_that_is_gone_leaves_nothing_behind(host: Host, engine: Engine) -> None:
    engine.submit(own(0, 0))
    engine.answer()
    before = open_fds(engine.process.pid)
    for k in range(3):
        engine.connect(f"front-{k + 2}")
        engine.submit(own(0, k))
        assert engine.answer()[0].number == k
        host.hub.send(engine.name, PeerGone(peer=f"front-{k + 2}"))
        until(lambda: open_fds(engine.process.pid) == before)


def test_several_fronts_at_once(host: Host, engine: Engine) -> None:
    first, answers = engine.jobs, engine.answers
    engine.connect("front-2")
    for k in range(10):
        engine.submit(own(0, k))
    assert sorted(all_answers(engine, 10)) == list(range(10))
    engine.jobs, engine.answers = first, answers
    engine.submit(own(0, 99))
    assert engine.answer()[0].number == 99


def test_drained_it_answers_all_and_leaves(host: Host, engine: Engine, tiny_avatar: Path) -> None:
    with AvatarPackage.open(tiny_avatar) as package:
        m = package.manifest
    jobs = jobs_of(noise(1.0), m.audio, m.avatar_frame)
    for job, pcm in jobs:
        engine.submit(job, pcm)
    host.hub.send(engine.name, Drain())
    host.expect(engine, Bye)
    assert engine.process.wait(DEADLINE_S) == 0
    assert len(engine.received()) == len(jobs)


def test_told_to_stop_it_leaves(host: Host, engine: Engine) -> None:
    host.hub.send(engine.name, Stop())
    assert engine.process.wait(DEADLINE_S) == 0


def test_signals_and_junk_do_not_end_it(host: Host, engine: Engine) -> None:
    """The supervisor decides; what cannot be read is ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(engine.process.pid, number)
    host.hub.socket.send_multipart([engine.name.encode(), b"\xc1 junk"])
    host.hub.socket.send_multipart([engine.name.encode(), b"two", b"frames"])
    engine.submit(own(0, 1))
    assert engine.answer()[0].status == Status.MADE
    host.expect(engine, Heartbeat)


def test_without_its_supervisor_it_leaves(engine: Engine) -> None:
    engine.end.close()
    assert engine.process.wait(DEADLINE_S) == 0


def test_an_avatar_that_cannot_be_loaded_does_not_keep_it_from_working(
    host: Host, tiny_avatar: Path, tmp_path: Path
) -> None:
    engine = host.start({"broken": str(tmp_path / "none"), "tiny": str(tiny_avatar)})
    assert "no such" in host.expect(engine, AvatarState).error
    assert host.expect(engine, Ready).capacity > 0
    engine.connect()
    engine.submit(own(0, 1))
    assert engine.answer()[0].status == Status.MADE


def test_what_is_known_is_not_measured(host: Host, tiny_avatar: Path) -> None:
    engine = host.start({"tiny": str(tiny_avatar)}, capacity=123.0)
    assert host.expect(engine, Ready).capacity == 123.0
    engine.connect()
    engine.submit(own(0, 1))
    assert engine.answer()[0].status == Status.MADE


def test_an_idle_engine_prepares_its_avatars(host: Host, engine: Engine) -> None:
    """Without being asked for anything, until there is nothing left to prepare."""
    held = host.expect(engine, Heartbeat, lambda beat: beat.load.cache_bytes["encoded frames"] > 0)
    most = held.load.cache_bytes["encoded frames"]
    beat = host.expect(
        engine, Heartbeat, lambda beat: beat.load.cache_bytes["encoded frames"] > most
    )
    assert beat.load.made == 0


def test_a_device_that_is_not_there(host: Host, tmp_path: Path) -> None:
    """Ends with a line that says so."""
    with open(tmp_path / "log", "w+b") as log:
        engine = host.start({}, device="cuda:0", stderr=log, log=Log(format="json"))
        assert engine.process.wait(DEADLINE_S) == 1
        log.seek(0)
        line = json.loads(log.read())
    assert line["level"] == "error"
    assert line["process"] == engine.name
    assert "CUDA" in line["reason"]


def test_a_task_that_is_none(host: Host, tmp_path: Path) -> None:
    with open(tmp_path / "log", "w+b") as log:
        engine = host.start({}, threads="many", stderr=log)
        assert engine.process.wait(DEADLINE_S) == 1
        log.seek(0)
        assert b"threads" in log.read()


def work(tiny_avatar: Path) -> list[tuple[Job, NDArray[np.float32]]]:
    with AvatarPackage.open(tiny_avatar) as package:
        m = package.manifest
    return jobs_of(noise(0.6), m.audio, m.avatar_frame)


def test_engines_share_what_they_have_prepared(host: Host, tiny_avatar: Path) -> None:
    """A second one finds it, and keeps none of its own; both make the same pictures."""
    fd = FrameStore.create()
    avatars = {"tiny": str(tiny_avatar)}
    pictures = []
    for _ in range(2):
        engine = host.start(avatars)
        assert engine.end.offer_frames("tiny", fd)
        host.expect(engine, Ready)
        engine.connect()
        todo = work(tiny_avatar)
        for job, pcm in todo:
            engine.submit(job, pcm)
        pictures.append({k: jpeg for k, (_, jpeg) in all_answers(engine, len(todo)).items()})
        load = host.expect(
            engine, Heartbeat, lambda b: b.load.cache_bytes["image halves, shared"] > 0
        ).load
        assert load.cache_bytes["image halves"] == 0
        engine.kill()
    assert pictures[0] == pictures[1]
    os.close(fd)


def test_an_engine_that_is_not_needed_yet_is_modest(host: Host, tiny_avatar: Path) -> None:
    """It has the lowest priority until it has prepared all, or gets a job; then none of it has."""
    engine = host.start({"tiny": str(tiny_avatar)}, modest=True)
    host.expect(engine, Ready)
    lower_session(engine.process.pid)  # only now: beside much other work it would not come so far
    autogroup = Path(f"/proc/{engine.process.pid}/autogroup")
    if not autogroup.exists():
        pytest.skip("this kernel has no autogroups")
    engine.connect()
    for job, pcm in work(tiny_avatar):
        engine.submit(job, pcm)
    assert engine.answer()[0].status == Status.MADE
    until(lambda: autogroup.read_text().rstrip().endswith("nice 0"))
    threads = map(int, os.listdir(f"/proc/{engine.process.pid}/task"))
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {ours}
