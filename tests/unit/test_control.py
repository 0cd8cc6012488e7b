# SPDX-License-Identifier: Apache-2.0
"""Control messages and the hand-off of rings, on real sockets in one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
import trio
import trio.testing
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_fast.errors import ControlError
from lipsync_fast.ipc.control import (
    AnyMessage,
    AvatarState,
    Heartbeat,
    Hello,
    Load,
    LoadAvatar,
    StatusReply,
)
from lipsync_fast.ipc.control_socket import Hub, Link, address, private_folder
from lipsync_fast.ipc.offers import RingSocket, RingsOffered
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter

T = TypeVar("T")


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made = zmq.Context[zmq.Socket[bytes]]()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return private_folder(tmp_path / "run")


def wait_for(sockets: list[Hub | Link], found: Callable[[], T | None]) -> T:
    """Poll the sockets until something is found, 30 s at most."""
    poller = zmq.Poller()
    for socket in sockets:
        poller.register(socket.socket, zmq.POLLIN)
    for _ in range(300):
        value = found()
        if value is not None:
            return value
        poller.poll(100)
    raise AssertionError("nothing came")


def test_both_ways(context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
    hub, link = Hub.bind(context, folder), Link.connect(context, folder, "engine-0")
    link.send(Hello(role="engine", pid=7, device="cpu"))
    name, hello = wait_for([hub], lambda: next(hub.received(), None))
    assert (name, hello) == ("engine-0", Hello(role="engine", pid=7, device="cpu"))
    assert hub.send("engine-0", LoadAvatar(name="demo", path="/x"))
    assert wait_for([link], lambda: next(link.received(), None)) == LoadAvatar(
        name="demo", path="/x"
    )
    beat = Heartbeat(load=Load(waiting=3, cache_bytes={"images": 5}))
    link.send(beat)
    link.send(AvatarState(name="demo", error="damaged"))
    first = wait_for([hub], lambda: next(hub.received(), None))
    second = wait_for([hub], lambda: next(hub.received(), None))
    assert [first[1], second[1]] == [beat, AvatarState(name="demo", error="damaged")]
    assert not hub.send("engine-9", LoadAvatar(name="demo", path="/x")), "nobody has that name"
    hub.close()
    link.close()


def test_a_successor_takes_over_the_name(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path
) -> None:
    hub, dead = Hub.bind(context, folder), Link.connect(context, folder, "engine-0")
    dead.send(Hello(role="engine", pid=1))
    wait_for([hub], lambda: next(hub.received(), None))
    successor = Link.connect(context, folder, "engine-0")
    successor.send(Hello(role="engine", pid=2))
    wait_for([hub], lambda: next(hub.received(), None))
    assert hub.send("engine-0", LoadAvatar(name="a", path="b"))
    assert wait_for([successor], lambda: next(successor.received(), None))
    assert next(dead.received(), None) is None
    for socket in (hub, dead, successor):
        socket.close()


def test_text_that_is_no_utf_8_is_garbage_too(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path
) -> None:
    """msgspec has an error of its own for that; it was the end of the supervisor."""
    hub, link = Hub.bind(context, folder), Link.connect(context, folder, "x")
    bad = msgspec.msgpack.encode({"type": "Hello", "role": "X", "pid": 1})
    link.socket.send(bad.replace(b"\xa1X", b"\xa1\xff"))
    link.send(Hello(role="front", pid=1))
    got: list[tuple[str, AnyMessage]] = []
    wait_for([hub], lambda: got.extend(hub.received()) or (got or None))
    assert got == [("x", Hello(role="front", pid=1))]
    assert hub.ignored == 1
    hub.close()
    link.close()


@settings(max_examples=30)
@given(garbage=st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_garbage_is_counted_and_ignored(
    garbage: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    context = zmq.Context[zmq.Socket[bytes]]()
    folder = private_folder(tmp_path_factory.mktemp("g") / "run")
    hub, link = Hub.bind(context, folder), Link.connect(context, folder, "x")
    link.socket.send_multipart(garbage)
    link.send(Hello(role="front", pid=1))
    got: list[tuple[str, AnyMessage]] = []
    wait_for([hub], lambda: got.extend(hub.received()) or (got or None))
    assert got[-1] == ("x", Hello(role="front", pid=1))
    assert hub.ignored + len(got) == 2
    hub.close()
    link.close()
    context.destroy(linger=0)


def test_a_peer_that_does_not_read_holds_nobody_up(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path
) -> None:
    hub, link = Hub.bind(context, folder), Link.connect(context, folder, "slow")
    link.send(Hello(role="front", pid=1))
    wait_for([hub], lambda: next(hub.received(), None))
    message = StatusReply(status=msgspec.Raw(msgspec.msgpack.encode("x" * 10_000)))
    sent = sum(hub.send("slow", message) for _ in range(20_000))
    assert sent < 20_000
    assert hub.dropped == 20_000 - sent
    hub.close()
    link.close()


def test_folder_of_others_is_refused(tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.mkdir(mode=0o755)
    with pytest.raises(ControlError, match="open to other users"):
        private_folder(public)
    link = tmp_path / "link"
    link.symlink_to(private_folder(tmp_path / "mine"))
    with pytest.raises(ControlError, match="not a folder of this user"):
        private_folder(link)
    with pytest.raises(ControlError, match=r"longer than a Unix socket's path"):
        address(tmp_path / ("x" * 120))


def test_the_socket_file_of_a_dead_supervisor_is_in_nobodys_way(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path
) -> None:

    (folder / "control").touch()
    hub = Hub.bind(context, folder)
    hub.close()


def test_rings_are_handed_over() -> None:
    ours, theirs = RingSocket.pair()
    assert theirs.accept() is None
    before = set(os.listdir("/proc/self/fd"))
    jobs, answers = RingHandle.create(4096, 5), RingHandle.create(8192, 5)
    assert ours.offer("front-0", jobs, answers)
    writer = RingWriter(jobs)
    jobs.close()
    answers.close()
    accepted = theirs.accept()
    assert isinstance(accepted, RingsOffered)
    jobs_there, answers_there = accepted.jobs, accepted.answers
    assert accepted.peer == "front-0"
    reader = RingReader(jobs_there)
    view = writer.try_reserve(5)
    assert view is not None
    view[:] = b"hello"
    writer.commit(5)
    record = reader.next()
    assert record is not None
    assert bytes(record) == b"hello"
    assert RingWriter(answers_there).largest == 8192 - 8
    jobs_there.close()
    answers_there.close()
    assert set(os.listdir("/proc/self/fd")) == before
    ours.close()
    with pytest.raises(ControlError, match="has gone"):
        theirs.accept()
    theirs.close()


def test_offers_that_lie_are_refused_and_leak_nothing() -> None:
    import socket

    ours, theirs = RingSocket.pair()
    before = set(os.listdir("/proc/self/fd"))
    for data, fds in ((b"\x00garbage", [0]), (b"x", []), (b"x", [0] * 6)):
        socket.send_fds(ours.socket, [data], fds)
        with pytest.raises(ControlError, match="an offer that cannot be read"):
            theirs.accept()
    assert set(os.listdir("/proc/self/fd")) == before
    ours.close()
    assert not theirs.offer("x", RingHandle(0, 0, 0, 1), RingHandle(0, 0, 0, 1))
    theirs.close()


@pytest.mark.parametrize("who", ["hub", "link"])
def test_a_wait_ends_with_a_message_and_with_sending(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path, who: str
) -> None:
    """Sending may swallow the edge of the socket's descriptor: so it ends the wait, too."""
    hub, link = Hub.bind(context, folder), Link.connect(context, folder, "engine-0")
    link.send(Hello(role="engine", pid=1))
    wait_for([hub], lambda: list(hub.received()) or None)

    def send(mine: bool) -> None:
        if mine == (who == "hub"):
            hub.send("engine-0", StatusReply(status=msgspec.Raw(b"\xc0")))
        else:
            link.send(Hello(role="engine", pid=2))

    waiter: Hub | Link = hub if who == "hub" else link

    async def main() -> None:
        for mine in (True, False, False, True):
            while list(waiter.received()):
                pass
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(waiter.wait)
                    await trio.testing.wait_all_tasks_blocked()
                    send(mine)

    trio.run(main)
    hub.close()
    link.close()
