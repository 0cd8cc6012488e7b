# SPDX-License-Identifier: Apache-2.0
"""The supervisor's children die, hang, and never start; so does the supervisor.

The supervisor is real, and so are all processes, sockets and rings; its children are stand-ins
(tests/stand_in.py), which note what they are told.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from serving import Server, lives, server, until

from lipsync_fast.ipc.status import ServerStatus

QUICK = "[engines]\nheartbeat_s = 0.05\nhung_s = 5.0\nbackoff_s = 0.05\nspares = {}\n"


def named(status: ServerStatus, state: str) -> list[str]:
    """Engines in a state."""
    return [engine.name for engine in status.engines if engine.state == state]


def kill(status: ServerStatus, name: str, number: int = signal.SIGKILL) -> None:
    """Send a child a signal."""
    child = next(c for c in [*status.engines, *status.fronts] if c.name == name)
    os.kill(child.pid, number)


def told(run: Server, front: str, kind: str, after: int = 0) -> list[dict[str, Any]]:
    return [note for note in run.notes(front, kind) if note["ns"] > after]


def nothing_in_dev_shm(run: Server) -> None:
    """What its processes share has no name, so that nothing can be left there."""
    shared = 0
    for pid in run.seen:
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        assert not [link for link in links if link.startswith("/dev/shm")]
        shared += sum(link.startswith("/memfd:lipsync-ring") for link in links)
    assert shared


def test_a_server_starts_stops_and_leaves_nothing() -> None:
    with server(QUICK.format(1), {}) as run:
        status = run.serving()
        assert [named(status, "ready"), named(status, "spare")] == [["engine-1"], ["engine-2"]]
        front = run.notes("front-1", "born")[0]["spec"]
        assert [each["kind"] for each in front["listeners"]] == ["stream", "http"]
        assert [each["port"] for each in front["listeners"]] == [*status.ports, status.http_port]
        engine = run.notes("engine-1", "born")[0]["spec"]
        assert list(engine["avatars"]) == ["demo"]
        pairs = until(lambda: (n := run.notes("front-1", "rings")) and len(n) == 2 and n)
        assert {note["peer"] for note in pairs} == {"engine-1", "engine-2"}
        assert len({note["generation"] for note in pairs}) == 2
        for note in pairs:
            other = until(lambda n=note: run.notes(n["peer"], "rings"))
            assert [n["generation"] for n in other] == [note["generation"]]
        nothing_in_dev_shm(run)
        assert run.stop() == 0
        assert "died" not in run.log


def test_a_spare_takes_over_and_is_replaced() -> None:
    with server(QUICK.format(1), {}) as run:
        status = run.serving()
        before = run.notes("front-1")[-1]["ns"]
        kill(status, "engine-1")
        after = run.when(lambda s: s if "engine-3" in named(s, "spare") else None)
        assert named(after, "ready") == ["engine-2"]
        assert {e.name: e.restarts for e in after.engines} == {"engine-2": 0, "engine-3": 1}
        gone = told(run, "front-1", "PeerGone", before)
        assert [note["peer"] for note in gone] == ["engine-1"]
        # Before that, that the spare works: so what the dead one owed goes there at once.
        lists = [n for n in told(run, "front-1", "Engines", before) if n["ns"] <= gone[0]["ns"]]
        named_last = [(e["name"], e["active"]) for e in lists[-1]["engines"]]
        assert named_last == [("engine-2", True)]
        assert until(lambda: "engine-3" in [note["peer"] for note in run.notes("front-1", "rings")])
        kill(after, "engine-2")
        assert run.when(lambda s: named(s, "ready") == ["engine-3"])


def test_without_a_spare_the_successor_works() -> None:
    with server(QUICK.format(0), {}) as run:
        status = run.serving(spares=0)
        kill(status, "engine-1")
        run.when(lambda s: named(s, "ready") == ["engine-2"])
        gone = told(run, "front-1", "PeerGone")[0]
        lists = run.notes("front-1", "Engines")
        assert [n["engines"] for n in lists if n["ns"] <= gone["ns"]][-1] == []
        assert lists[-1]["engines"][0]["name"] == "engine-2"


def test_an_engine_that_hangs_is_killed_and_replaced() -> None:
    with server(QUICK.format(1).replace("5.0", "1.5"), {}) as run:
        status = run.serving()
        kill(status, "engine-1", signal.SIGSTOP)
        run.when(lambda s: s if named(s, "ready") == ["engine-2"] else None)
        assert "child=engine-1 how='killed: hung, silent for" in run.log
        assert until(lambda: told(run, "front-1", "PeerGone"))
        assert [note["peer"] for note in told(run, "front-1", "PeerGone")] == ["engine-1"]
        assert not lives(status.engines[0].pid)


def test_nobody_is_killed_for_the_supervisors_own_silence() -> None:
    with server(QUICK.format(1).replace("5.0", "1.0"), {}) as run:
        before = run.serving()
        run.signal(signal.SIGSTOP)
        time.sleep(2.5)  # not to wait for something: this is what is tested
        run.signal(signal.SIGCONT)
        after = run.when(lambda s: s if s.uptime_s > before.uptime_s + 3.5 else None)
        assert [e.name for e in after.engines] == ["engine-1", "engine-2"]
        assert "died" not in run.log


@pytest.mark.parametrize("first", ["supervisor", "children"])
def test_nobody_has_hung_where_all_stood_still(first: str) -> None:
    """The machine was suspended: a clock has gone on for longer than anyone may be silent."""
    with server(QUICK.format(1).replace("5.0", "2.0"), {}) as run:
        before = run.serving()
        children = [child.pid for child in (*before.engines, *before.fronts)]
        order = [run.process.pid, *children]
        for pid in reversed(order):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(5)  # this is what is tested
        for pid in order if first == "supervisor" else reversed(order):
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.05)
        after = run.when(lambda s: s if s.uptime_s > before.uptime_s + 9 else None)
        assert [e.name for e in after.engines] == ["engine-1", "engine-2"]
        assert [c.pid for c in (*after.engines, *after.fronts)] == children
        assert "died" not in run.log
        assert not told(run, "front-1", "PeerGone")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_front_that_dies_or_hangs_has_a_successor_at_the_same_ports(number: int) -> None:
    with server(QUICK.format(1).replace("5.0", "1.5"), {}) as run:
        status = run.serving()
        kill(status, "front-1", number)
        client = socket.create_connection(("127.0.0.1", status.ports[0]), 30)
        after = run.when(lambda s: s if [f.name for f in s.fronts] == ["front-2"] else None)
        client.close()  # it was not refused meanwhile
        assert after.fronts[0].restarts == 1
        run.serving()
        old, new = (run.notes(name, "born")[0]["spec"] for name in ("front-1", "front-2"))
        assert old["listeners"] == new["listeners"]
        assert {e.name for e in after.engines} == {"engine-1", "engine-2"}
        for engine in ("engine-1", "engine-2"):
            until(lambda e=engine: run.notes(e, "PeerGone"))
            peers = until(lambda e=engine: (n := run.notes(e, "rings")) and len(n) == 2 and n)
            assert [note["peer"] for note in peers] == ["front-1", "front-2"]
        assert run.stop() == 0


def test_engines_that_never_start_end_the_server() -> None:
    with server(QUICK.format(1), {"die_early": ["engine"]}) as run:
        assert run.ended() == 2
        assert "error: engines do not start (exit status 3)" in run.log
        run.nothing_is_left()


def test_a_default_avatar_that_no_engine_can_load_ends_the_server() -> None:
    with server(QUICK.format(1), {"bad": {"demo": "it is damaged"}}) as run:
        assert run.ended() == 2
        assert "error: avatar 'demo' cannot be used: it is damaged" in run.log
        run.nothing_is_left()


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="this machine has no prlimit")
def test_without_memory_for_rings_the_server_ends() -> None:
    with server(QUICK.format(0), {}, file_bytes=10 << 20) as run:
        assert run.ended() == 2
        assert "error: cannot make a ring of 16777216 bytes: " in run.log
        assert "serving" not in run.log
        run.nothing_is_left()


def test_a_front_in_a_crash_loop_ends_the_server() -> None:
    with server(QUICK.format(0), {"die_when_ready": ["front"]}) as run:
        assert run.ended() == 2
        assert "error: fronts die again and again (exit status 4)" in run.log
        assert run.log.count("started child=front-") == 5
        run.nothing_is_left()


def test_engines_that_die_later_are_tried_for_ever_with_longer_pauses() -> None:
    with server(QUICK.format(0), {}) as run:
        status = run.serving(spares=0)
        for count in range(1, 6):
            kill(status, f"engine-{count}")
            if count == 5:  # in the longest pause, its place is not forgotten
                gone = run.when(lambda s: s if named(s, "gone") else None)
                assert [(e.slot, e.restarts) for e in gone.engines] == [(0, 4)]
                assert (gone.capacity, gone.engines[0].silent_s > 0) == (0.0, True)
            status = run.when(
                lambda s, n=count: s if named(s, "ready") == [f"engine-{n + 1}"] else None
            )
        pauses = [
            float(line.rpartition("in_s=")[2]) for line in run.log.splitlines() if " died" in line
        ]
        assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8]


def test_children_of_another_version_are_not_served() -> None:
    with server(QUICK.format(0), {"version": 99, "never_ready": ["engine", "front"]}) as run:
        assert run.ended() == 2
        assert "speaks another version child=engine-1 its=99" in run.log


# ---------------------------------------------------------------- GPUs
def test_an_engine_on_a_gpu_sees_that_one_alone() -> None:
    near = sorted(os.sched_getaffinity(0))[:1]
    config = QUICK.format(1) + "precision = 'bf16'\n"
    with server(config, {"gpus": 2, "near": near}) as run:
        status = run.serving()
        assert [e.device for e in status.engines] == ["cuda:0", "cuda:1", "cuda:0"]
        for name, visible in (("engine-1", "0"), ("engine-2", "1"), ("engine-3", "0")):
            born = run.notes(name, "born")[0]
            assert born["cuda"] == {
                "CUDA_VISIBLE_DEVICES": visible,
                "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            }
            assert born["spec"]["device"] == f"cuda:{visible}"
            assert born["spec"]["precision"] == "bf16"
            assert born["spec"]["processors"] == near
            assert born["spec"]["threads"] is None
        assert not run.notes("engine-1", "frames"), "that memory is for CPU engines"
        assert run.notes("front-1", "born")[0]["cuda"] == {}
        assert run.stop() == 0


def test_a_gpu_that_is_lost_is_told_of_and_tried_again_while_others_serve() -> None:
    why = "cuda:1: CUDA error 79: GPU has fallen off the bus"
    with server(QUICK.format(0), {"gpus": 2, "lost": {"cuda:1": why}}) as run:
        until(lambda: run.log.count("died; to be replaced") >= 5)
        lost = run.when(lambda s: next((e for e in s.engines if e.state == "gone"), None))
        assert (lost.slot, lost.device) == (1, "cuda:1")
        assert lost.reason == f"exit status 1: {why}"
        assert lost.restarts >= 3
        assert lost.retry_s > 0
        status = run.status()
        assert (status.state, named(status, "ready")) == ("serving", ["engine-1"])
        shown = shown_status(run)
        assert f"lost (exit status 1: {why}), again in" in shown
        lines = [line for line in run.log.splitlines() if " died; " in line]
        pauses = [float(line.rpartition("in_s=")[2]) for line in lines][:5]
        assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8]
        assert run.stop() == 0


def shown_status(run: Server) -> str:
    """What people are shown of the status, on one line."""
    from rich.console import Console

    from lipsync_fast.cli.status_tables import as_tables

    console = Console(width=400)
    with console.capture() as shown:
        console.print(as_tables(run.status()))
    return shown.get()


def test_where_no_gpu_works_the_server_does_not_start() -> None:
    lost = {"cuda:0": "no memory", "cuda:1": "no memory"}
    with server(QUICK.format(0), {"gpus": 2, "lost": lost}) as run:
        assert run.ended() == 2
        assert "error: engines do not start (exit status 1: no memory)" in run.log
        run.nothing_is_left()


def test_avatars_go_where_memory_is_and_further_when_they_are_in_demand(tmp_path: Path) -> None:
    folder = avatar_folder(tmp_path, "anna", "bert")
    config = QUICK.format(0) + f"[avatars]\nfolders = ['{folder}']\n"
    with server(config, {"gpus": 3}) as run:
        run.serving(spares=0)
        memory = {"device_memory_total": 1000}
        for number, used in ((1, 900), (2, 300), (3, 860)):
            run.order(f"engine-{number}", load={**memory, "device_memory_used": used})
        run.when(lambda s: all(e.load.device_memory_used for e in s.engines) or None)
        assert "0.0 of 0.0 GB" in shown_status(run)
        run.order("front-1", want="anna")
        until(lambda: "anna" in infos(run)["engine-2"]["avatars"])
        assert [sorted(e["avatars"]) for e in infos(run).values()] == [
            ["demo"],
            ["anna", "demo"],
            ["demo"],
        ]
        busy = {**memory, "device_memory_used": 300, "frames_per_s": 80.0}
        run.order("engine-2", load=busy)
        run.order("engine-3", load={**busy, "device_memory_used": 860, "frames_per_s": 50.0})
        until(lambda: "anna" in infos(run)["engine-1"]["avatars"], "the least busy one")
        assert infos(run)["engine-3"]["avatars"] == ["demo"]
        # What a full engine held is what its successor is born with.
        run.order("front-1", want="bert")
        until(lambda: "bert" in infos(run)["engine-2"]["avatars"])
        kill(run.status(), "engine-3")
        born = until(lambda: run.notes("engine-4", "born"))[0]
        assert list(born["spec"]["avatars"]) == ["demo"]


# ---------------------------------------------------------------- avatars
def avatar_folder(run_base: Path, *names: str) -> Path:
    folder = run_base / "avatars"
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "manifest.json").touch()
    return folder


def infos(run: Server) -> dict[str, dict[str, Any]]:
    """Engines as the front was told last."""
    told = until(lambda: run.notes("front-1", "Engines"))  # a front says Ready before it listens
    return {e["name"]: e for e in told[-1]["engines"]}


def test_an_avatar_that_is_wanted_is_loaded_by_all_engines(tmp_path: Path) -> None:
    folder = avatar_folder(tmp_path, "anna", "broken", "secret")
    config = (
        QUICK.format(1) + f"[avatars]\nfolders = ['{folder}']\nonly = ['anna', 'broken', 'ghost']\n"
    )
    with server(config, {"bad": {"broken": "it is damaged"}}) as run:
        status = run.serving()
        for name in ("anna", "broken", "ghost", "secret", "../anna"):
            run.order("front-1", want=name)
        until(lambda: all("anna" in e["avatars"] for e in infos(run).values()))
        until(lambda: all(len(e["errors"]) == 4 for e in infos(run).values()))
        for engine in infos(run).values():
            assert engine["errors"]["broken"] == "it is damaged"
            assert engine["errors"]["ghost"].startswith("avatar 'ghost' was not found")
            assert engine["errors"]["secret"] == "there is no avatar 'secret'"
            assert engine["errors"]["../anna"] == "there is no avatar '../anna'"
        path = str(folder / "anna")
        for engine in ("engine-1", "engine-2"):
            assert {"name": "anna", "path": path} in [
                {"name": n["name"], "path": n["path"]} for n in run.notes(engine, "LoadAvatar")
            ]
        kill(status, "engine-1")
        run.when(lambda s: "engine-3" in named(s, "spare"))
        spec = run.notes("engine-3", "born")[0]["spec"]
        assert list(spec["avatars"].items())[1:] == [("anna", path)]
        assert next(iter(spec["avatars"])) == "demo"
        assert spec["modest"], "another one works"
        until(lambda: len(run.notes("engine-3", "frames")) == 2)
        memory = [
            {note["avatar"]: note["inode"] for note in run.notes(f"engine-{k}", "frames")}
            for k in (1, 2, 3)
        ]
        assert memory[0].keys() == {"demo", "anna", "broken"}
        assert memory[0]["demo"] != memory[0]["anna"]
        for name in ("demo", "anna"):
            assert len({each[name] for each in memory}) == 1, "one memory for all engines"


def test_an_avatar_that_kills_engines_is_taken_out_of_use(tmp_path: Path) -> None:
    folder = avatar_folder(tmp_path, "cursed")
    config = QUICK.format(1) + f"[avatars]\nfolders = ['{folder}']\n"
    with server(config, {"deadly": ["cursed"]}) as run:
        run.serving()
        run.order("front-1", want="cursed")
        until(lambda: "an avatar kills engines; no longer in use avatar=cursed" in run.log)
        status = run.serving()
        assert all(e.avatars == ["demo"] for e in status.engines)
        assert run.stop() == 0


# ---------------------------------------------------------------- numbers
def test_what_fronts_are_told_of_speakers_and_each_other() -> None:
    with server("fronts = 2\n" + QUICK.format(1), {"capacity": 100.0}) as run:
        status = run.serving()
        assert status.speakers == 3  # 100 frames/s, of which 0.8 may be used, at 25 a speaker
        assert status.capacity == 100.0
        run.order("front-1", load={"speaking": 2, "sessions": 5, "frames": 10})
        run.order("front-2", load={"speaking": 1, "sessions": 1})
        for name, others in (("front-1", 1), ("front-2", 2)):
            until(lambda n=name, o=others: run.notes(n, "Engines")[-1]["others"] == o)
        assert run.notes("front-1", "Engines")[-1]["speakers"] == 3
        assert run.when(lambda s: s if s.fronts[0].load.sessions == 5 else None)
        run.order("front-1", load={"frames": 1000})
        assert run.when(lambda s: s.frames_per_s > 0)
        assert until(
            lambda: run.notes("front-1", "StatusReply")[-1]["status"]["state"] == "serving"
        )
        first, second = (run.notes(f"front-{n}", "born")[0]["spec"] for n in (1, 2))
        assert [each["port"] for each in first["listeners"]] == [
            each["port"] for each in second["listeners"]
        ]
        assert {each["fd"] for each in first["listeners"]}.isdisjoint(
            each["fd"] for each in second["listeners"]
        )


def test_nonsense_on_the_control_socket_is_counted() -> None:
    with server(QUICK.format(0), {}) as run:
        run.serving(spares=0)
        run.order("front-1", garbage="not a message")
        assert run.when(lambda s: s.ignored == 1)


# ---------------------------------------------------------------- the end
def test_sessions_are_given_time_to_end_and_no_more() -> None:
    with server("drain_seconds = 0.3\n" + QUICK.format(0), {"busy": True}) as run:
        run.serving(spares=0)
        assert run.stop() == 0
        assert "sessions were cut off" in run.log
        assert run.notes("front-1", "Drain")
        assert run.notes("front-1", "Stop")


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 0),
        ([signal.SIGINT, signal.SIGINT], 130),
        ([signal.SIGINT], 0),
    ],
)
def test_a_second_signal_ends_it_at_once(numbers: list[int], status: int) -> None:
    busy = len(numbers) > 1
    with server("drain_seconds = 1000\n" + QUICK.format(0), {"busy": busy}) as run:
        run.serving(spares=0)
        run.signal(signal.SIGHUP)  # is ignored
        run.signal(numbers[0])
        if busy:
            assert run.when(lambda s: s.state == "draining")
            run.signal(numbers[1])
        assert run.ended() == status
        run.nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_does_not_serve_yet_stops_at_once(number: int) -> None:
    with server("drain_seconds = 1000\n" + QUICK.format(0), {"never_ready": ["engine"]}) as run:
        until(lambda: run.notes("engine-1", "born"))
        run.signal(number)
        assert run.ended() == 0
        run.nothing_is_left()


def test_children_that_do_not_leave_are_killed() -> None:
    with server(QUICK.format(0), {"deaf": ["engine"]}) as run:
        status = run.serving(spares=0)
        run.seen |= {e.pid for e in status.engines}
        assert run.stop() == 0


def test_the_supervisor_is_killed_and_started_again() -> None:
    with server(QUICK.format(1), {}) as run:
        status = run.serving()
        ports = status.ports[0], status.http_port
        run.signal(signal.SIGKILL)
        run.ended()
        # At once: the fronts of the killed one are leaving, and still have the ports.
        with server(QUICK.format(1), {}, folder=run.folder, ports=ports) as again:
            assert again.serving().ports == status.ports
            until(lambda: not any(map(lives, run.seen)), "until the old children have left")
            assert run.notes("engine-1", "orphan")
            assert again.stop() == 0


def test_all_are_killed_and_started_again() -> None:
    with server(QUICK.format(1), {}) as run:
        status = run.serving()
        for pid in run.seen:
            os.kill(pid, signal.SIGKILL)
        run.ended()
        assert (run.folder / "control").exists()
        ports = status.ports[0], status.http_port
        with server(QUICK.format(1), {}, folder=run.folder, ports=ports) as again:
            again.serving()
            assert again.stop() == 0


def test_a_second_server_in_the_folder_is_refused() -> None:
    with server(QUICK.format(0), {}) as run:
        before = run.serving(spares=0)
        with server(QUICK.format(0), {}, folder=run.folder) as second:
            assert second.ended() == 2
            assert f"another server (process {run.process.pid}) runs there" in second.log
            assert "started" not in second.log
        assert [e.pid for e in run.status().engines] == [e.pid for e in before.engines]


def test_a_port_in_use_is_refused_before_anything_starts() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        server(QUICK.format(0), {}, ports=(0, taken.getsockname()[1])) as run,
    ):
        assert run.ended() == 2
        assert "the port is in use" in run.log
        assert "started" not in run.log
        run.nothing_is_left()


def test_the_service_manager_hears_of_it_all(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(60)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "200000"}
        with server(QUICK.format(0), {}, environ=environ) as run:
            heard = [b""]
            while heard[-1] != b"READY=1":
                heard.append(manager.recv(1000))
            assert run.status().state == "serving"
            while not heard[-1].startswith(b"STATUS=serving: 1 engines, 0 sessions"):
                heard.append(manager.recv(1000))
            assert b"WATCHDOG=1" in heard
            assert run.stop() == 0
            while heard[-1] != b"STOPPING=1":
                heard.append(manager.recv(1000))


@pytest.mark.parametrize("what", ["the folder", "the socket"])
def test_a_run_folder_that_somebody_has_removed_is_made_again(what: str) -> None:
    """Or a child that dies is never replaced, and nobody can ask how the server does."""
    with server(QUICK.format(0), {}) as run:
        status = run.serving(0)
        if what == "the folder":
            shutil.rmtree(run.folder)
        else:
            (run.folder / "control").unlink()
        kill(status, "engine-1")
        run.when(lambda s: named(s, "ready") == ["engine-2"], "it is replaced")
        assert "the control socket was removed; it is made again" in run.log
        assert run.stop() == 0
