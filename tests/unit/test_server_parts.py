# SPDX-License-Identifier: Apache-2.0
"""What the supervisor does before and beside its loop: folder, ports, sizes, sd_notify."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipsync_fast.config import Listen, Live, ServeConfig
from lipsync_fast.errors import ControlError, ServerError
from lipsync_fast.ipc.children import FrontSpec
from lipsync_fast.notify import Notifier
from lipsync_fast.supervisor import run_folder
from lipsync_fast.supervisor.children import ChildSlot, spawn, why_not_started
from lipsync_fast.supervisor.devices import cpu_threads
from lipsync_fast.supervisor.ports import BoundPort, bind_ports
from lipsync_fast.supervisor.ring_broker import answer_ring
from lipsync_fast.supervisor.status import Usable, speakers_for


# ---------------------------------------------------------------- folder
@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_a_folder_is_private_locked_and_removed(runtime: Path) -> None:
    path = run_folder.default_run_folder(8084)
    assert path == runtime / "lipsync-fast-8084"
    taken = run_folder.RunFolder.take(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert run_folder.is_running(path)
    assert list(run_folder.run_folders()) == [path]
    with pytest.raises(ServerError, match=rf"another server \(process {os.getpid()}\) runs there"):
        run_folder.RunFolder.take(path)
    assert run_folder.remove_crashed() == [], "it lives"
    taken.remove()
    assert not path.exists()
    assert not run_folder.is_running(path)


def crash(path: Path) -> None:
    """Leave a folder as a killed server does."""
    taken = run_folder.RunFolder.take(path)
    os.close(taken._fd)
    (path / run_folder.CONTROL).touch()


def test_what_a_crashed_run_left_is_taken_over_or_removed(runtime: Path) -> None:
    for port in (1, 2):
        crash(run_folder.default_run_folder(port))
    (runtime / "lipsync-fast-notes").mkdir()
    (run_folder.default_run_folder(2) / "precious").touch()
    assert run_folder.was_running(run_folder.default_run_folder(1))
    taken = run_folder.RunFolder.take(run_folder.default_run_folder(1))
    assert not (taken.path / run_folder.CONTROL).exists()
    assert run_folder.remove_crashed() == [run_folder.default_run_folder(2)]
    assert (run_folder.default_run_folder(2) / "precious").exists(), "what is not ours stays"
    taken.remove()
    assert (runtime / "lipsync-fast-notes").exists()


def test_a_folder_that_was_removed_is_made_again_unless_another_has_it(runtime: Path) -> None:
    path = run_folder.default_run_folder(8080)
    first = run_folder.RunFolder.take(path)
    assert not first.renew()
    shutil.rmtree(path)
    assert first.renew()
    assert run_folder.is_running(path)
    assert not first.renew()
    shutil.rmtree(path)
    second = run_folder.RunFolder.take(path)
    with pytest.raises(ServerError, match="another server"):
        first.renew()
    second.remove()
    assert first.renew()
    first.remove()
    assert not path.exists()


def test_a_process_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    file = tmp_path / "python"
    file.write_text("no program")

    def spec(rings_fd: int) -> FrontSpec:
        return FrontSpec(
            name="front-1", folder="", rings_fd=rings_fd, listeners=[], config=ServeConfig()
        )

    with pytest.raises(OSError) as caught:
        spawn(ChildSlot("front", 0), "front-1", [str(file)], spec, {})
    assert why_not_started(caught.value) == f"{file}: Permission denied"
    assert why_not_started(BlockingIOError(11, "Resource temporarily unavailable")) == (
        "Resource temporarily unavailable"
    )


def test_folders_that_cannot_be_trusted(runtime: Path) -> None:
    public = runtime / "public"
    public.mkdir(mode=0o755)
    with pytest.raises(ControlError, match="open to other users"):
        run_folder.RunFolder.take(public)
    linked = run_folder.RunFolder.take(runtime / "own")
    linked.remove()
    (runtime / "own").mkdir(mode=0o700)
    (runtime / "own" / run_folder.LOCK).symlink_to("/etc/passwd")
    with pytest.raises(ServerError, match="lock"):
        run_folder.RunFolder.take(runtime / "own")


def test_what_lies_in_a_run_folder_is_named_and_not_waited_for(runtime: Path) -> None:
    """Its user alone can have put it there; still it is one line, at once."""
    folder = runtime / "own"
    folder.mkdir(mode=0o700)
    os.mkfifo(folder / run_folder.LOCK)
    with pytest.raises(ServerError, match=r"own/lock: is not a file; remove it"):
        run_folder.RunFolder.take(folder)
    assert not run_folder.is_running(folder)
    (folder / run_folder.LOCK).unlink()
    (folder / run_folder.CONTROL).mkdir()
    with pytest.raises(ServerError, match=r"own/control: .*; remove it"):
        run_folder.RunFolder.take(folder)
    assert not run_folder.is_running(folder), "the lock was given back"


def test_without_a_runtime_folder_it_is_under_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    assert run_folder.default_run_folder(7) == Path(f"/tmp/lipsync-fast-{os.geteuid()}/7")


# ---------------------------------------------------------------- ports
@pytest.fixture
def bound() -> Iterator[list[BoundPort]]:
    made: list[BoundPort] = []
    yield made
    for each in made:
        each.close()


def test_all_ports_are_bound_and_listen(bound: list[BoundPort]) -> None:
    bound += bind_ports(Listen(ports=(0, 0), http_port=0), fronts=1)
    assert [each.kind for each in bound] == ["stream", "stream", "http"]
    assert len({each.port for each in bound}) == 3
    for each in bound:
        socket.create_connection(("127.0.0.1", each.port), 5).close()


def test_thousands_may_wait_to_be_taken(bound: list[BoundPort]) -> None:
    """Who has no room to wait in would be heard again after seconds only."""
    allowed = int(Path("/proc/sys/net/core/somaxconn").read_text())
    bound += bind_ports(Listen(ports=(0,), http_port=0), fronts=2)
    for port in bound:
        for each in port.sockets:
            about = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
            (most,) = struct.unpack_from("=I", about, 28)  # of a listening socket
            assert most == min(4096, allowed)


def test_each_front_has_sockets_of_its_own(bound: list[BoundPort]) -> None:
    bound += bind_ports(Listen(ports=(0,), http_port=0), fronts=3)
    assert [len(each.sockets) for each in bound] == [3, 3]
    assert {s.getsockname()[1] for s in bound[0].sockets} == {bound[0].port}


@pytest.mark.parametrize("fronts", [1, 2])
def test_a_port_in_use_is_an_error_even_where_it_could_be_shared(
    bound: list[BoundPort], fronts: int
) -> None:
    bound += bind_ports(Listen(ports=(0,), http_port=0), fronts=2)
    for listen in (
        Listen(ports=(bound[0].port,), http_port=0),
        Listen(ports=(0,), http_port=bound[1].port),
    ):
        with pytest.raises(ServerError, match=r"127.0.0.1 port \d+: the port is in use"):
            bind_ports(listen, fronts)


def test_a_port_that_orphans_are_leaving_is_waited_for(bound: list[BoundPort]) -> None:
    old = bind_ports(Listen(ports=(0,), http_port=0), fronts=1)
    port = old[0].port
    asked = []

    def orphans() -> bool:
        asked.append(1)
        if len(asked) == 3:
            for each in old:
                each.close()
        return True

    bound += bind_ports(Listen(ports=(port,), http_port=0), 1, orphans)
    assert bound[0].port == port


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("no.such.host.invalid", "cannot listen on host 'no.such.host.invalid'"),
        ("192.0.2.1", "this machine has no such address"),
        ("a" * 300, "cannot listen on host"),
        ("bad..name", "cannot listen on host"),
    ],
)
def test_hosts_that_cannot_be(host: str, said: str) -> None:
    with pytest.raises(ServerError, match=said):
        bind_ports(Listen(host=host, ports=(0,), http_port=0), 1)


def test_ipv6_and_names(bound: list[BoundPort]) -> None:
    if not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this machine has no IPv6")
    bound += bind_ports(Listen(host="::", ports=(0,), http_port=0), 1)
    socket.create_connection(("127.0.0.1", bound[0].port), 5).close()  # both families
    bound += bind_ports(Listen(host="localhost", ports=(0,), http_port=0), 1)
    assert bound[-1].sockets[0].family == socket.AF_INET


# ---------------------------------------------------------------- sizes
def test_threads_leave_room_for_fronts_where_there_is_room() -> None:
    assert [cpu_threads(n, 1, 1) for n in (1, 2, 3, 4, 16)] == [1, 2, 3, 3, 15]
    assert cpu_threads(16, 4, 2) == 3
    assert cpu_threads(2, 4, 1) == 1


def test_rings_of_many_fronts_are_smaller() -> None:
    assert [answer_ring("cpu", fronts) >> 20 for fronts in (1, 64)] == [16, 16]
    mib = [answer_ring("cuda:0", fronts) >> 20 for fronts in (1, 2, 3, 4, 5, 64)]
    assert mib == [64, 32, 16, 16, 16, 16]


# ---------------------------------------------------------------- sd_notify
@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    name = f"@lipsync-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "500000", "HOME": "/"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(10)
        notifier = Notifier(environ)
        assert environ == {"HOME": "/"}, "children must not tell"
        assert notifier.watchdog_s == 0.5
        notifier.ready()
        notifier.status("a\nb")
        notifier.alive()
        notifier.stopping()
        told = [manager.recv(100) for _ in range(4)]
        assert told == [b"READY=1", b"STATUS=a b", b"WATCHDOG=1", b"STOPPING=1"]
    notifier.ready()  # the manager has gone: nothing happens
    notifier.close()


def test_no_manager_and_others_watchdogs() -> None:
    notifier = Notifier({})
    notifier.ready()
    notifier.close()
    assert notifier.watchdog_s is None
    for watchdog in ({"WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}):
        notifier = Notifier({"WATCHDOG_USEC": "1000000", **watchdog})
        assert notifier.watchdog_s is None
        notifier.close()


# ---------------------------------------------------------------- how many may speak
@pytest.mark.parametrize(
    ("capacity", "shared", "expected"),
    [
        (126.0, 2, 3),  # 0.8 / (25 / 126 + 25 ms / 2): the front's time decides
        (126.0, None, 4),
        (2_400.0, None, 76),
        (10.0, 2, 1),
        (0.0, 2, 1),
    ],
)
def test_as_many_may_speak_as_engines_and_front_can_serve(
    capacity: float, shared: int | None, expected: int
) -> None:
    assert speakers_for(Live(), capacity, shared) == expected
    assert speakers_for(Live(speakers=7), capacity, shared) == 7


def test_a_limit_of_processors_that_changes_is_known_a_second_later() -> None:
    limits, now = iter((2, 1)), [100.0]
    usable = Usable(lambda: next(limits), lambda: now[0])
    assert [usable.processors for _ in range(6)] == [2] * 6, "and read once for a report"
    now[0] += 1.0
    assert usable.processors == 1
