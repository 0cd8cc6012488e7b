# SPDX-License-Identifier: Apache-2.0
"""Avatars that are loaded, replaced and unloaded while a server runs and people speak with them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import trio
from engines import open_fds
from even_server import EVEN
from serving import server as stand_ins
from talking import (
    ALONE,
    BUSY_MACHINE,
    SLOW_MACHINE,
    assert_whole,
    in_trio,
    say,
    speech,
    spoken,
    until,
    utterance,
)
from variants import put

import lipsync_fast
from lipsync_fast.cli.status import ControlClient
from lipsync_fast.client import Session, SessionError, SessionStarted
from lipsync_fast.client.local import LocalServer
from lipsync_fast.ipc.control import AvatarChanged
from lipsync_fast.ipc.status import AvatarStatus

TOKEN = "let me"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("live-avatars")


@pytest.fixture(scope="module")
def server(tiny_avatar: Path, folder: Path) -> Iterator[LocalServer]:
    put(tiny_avatar, folder / "base.lsa")
    config = {
        "live": {"speakers": 4, **SLOW_MACHINE},
        "avatars": {"folders": [str(folder)], "default": "base"},
        "listen": {"admin_token": TOKEN},
        "engines": {"gpus": "none", **BUSY_MACHINE},
    }
    with LocalServer(config, command=EVEN) as server:
        yield server


@pytest.fixture(autouse=True)
def unloaded_behind(server: LocalServer) -> Iterator[None]:
    """What a test has loaded goes with it, so that engines which start in others load little."""
    yield
    for name in {a.name for a in server.status().avatars if a.version} - {"base"}:
        change(server, "unload", name)


def change(server: LocalServer, action: str, name: str, path: str = "") -> AvatarChanged:
    with ControlClient(server.folder) as client:
        return client.change(action, name, path)  # type: ignore[arg-type]


def load(server: LocalServer, name: str, path: str = "") -> tuple[str, int]:
    done = change(server, "load", name, path)
    return done.state, done.version


def versions(server: LocalServer, name: str) -> dict[int, AvatarStatus]:
    return {a.version: a for a in server.status().avatars if a.name == name}


def when(server: LocalServer, name: str, wanted: set[int]) -> None:
    """Wait until an avatar has just these versions."""
    end = time.monotonic() + 60
    while versions(server, name).keys() != wanted:
        assert time.monotonic() < end, (versions(server, name), server.log()[-3000:])
        time.sleep(0.02)


def until_current(server: LocalServer, name: str, version: int) -> None:
    """Wait until sessions get a version."""
    end = time.monotonic() + 60
    while (found := versions(server, name).get(version)) is None or found.state != "current":
        assert time.monotonic() < end, (found, server.log()[-3000:])
        time.sleep(0.02)


async def height(session: Session) -> int:
    started, _ = await until(session, SessionStarted)
    return started.height


async def speaks(session: Session, number: int) -> None:
    """A word is said in whole."""
    await say(session, speech(0.4))
    ended, events = await utterance(session, number)
    assert_whole(ended, spoken(events), 10)


async def seen(server: LocalServer, name: str) -> int:
    """The height of what a new session is shown."""
    async with lipsync_fast.connect(server.url, avatar=name) as session:
        return session.started.height


async def in_thread(function: object, *args: object) -> object:
    return await trio.to_thread.run_sync(function, *args)  # type: ignore[arg-type]


# ---------------------------------------------------------------- versions
@in_trio
async def test_a_session_keeps_what_it_began_with(
    server: LocalServer, tiny_avatar: Path, folder: Path
) -> None:
    put(tiny_avatar, folder / "anna.lsa", 192)
    async with lipsync_fast.connect(server.url, avatar="anna") as first:
        assert first.started.height == 192
        put(tiny_avatar, folder / "anna.lsa", 208, frames=3)
        assert await seen(server, "anna") == 192, "nobody has said that it is to be loaded"
        assert load(server, "anna") == ("loaded", 2)
        assert await seen(server, "anna") == 208
        await speaks(first, 1)
        async with lipsync_fast.connect(server.url, avatar="anna") as second:
            await speaks(second, 1)
            assert change(server, "unload", "anna").state == "unloaded"
            assert versions(server, "anna").keys() == {0, 1, 2}
            for session in (first, second):
                await speaks(session, 2)
            with pytest.raises(SessionError, match="is unloaded") as error:
                await seen(server, "anna")
            assert error.value.code == "unknown_avatar"
            with pytest.raises(SessionError, match="is unloaded"):
                await seen(server, "anna")
        when(server, "anna", {0, 1})
        await speaks(first, 3)
    when(server, "anna", {0})
    assert change(server, "unload", "anna").state == "unchanged"
    put(tiny_avatar, folder / "anna.lsa", 224)
    assert load(server, "anna") == ("loaded", 3)
    assert load(server, "anna") == ("unchanged", 3)
    assert await seen(server, "anna") == 224


@in_trio
async def test_a_session_asks_for_the_new_version(
    server: LocalServer, tiny_avatar: Path, folder: Path
) -> None:
    put(tiny_avatar, folder / "bert.lsa", 192)
    async with lipsync_fast.connect(server.url, avatar="bert") as session:
        put(tiny_avatar, folder / "bert.lsa", 208, frames=2)
        assert load(server, "bert") == ("loaded", 2)
        await session.send(speech(1.0))
        await session.update(avatar="bert")
        assert await height(session) == 208
        await session.end_utterance()
        await utterance(session, 1)
        await speaks(session, 2)
        when(server, "bert", {2})
        assert versions(server, "bert")[2].uses == 1


@in_trio
async def test_what_is_broken_changes_nothing(
    server: LocalServer, tiny_avatar: Path, folder: Path
) -> None:
    put(tiny_avatar, folder / "carl.lsa")
    async with lipsync_fast.connect(server.url, avatar="carl") as session:
        good = (folder / "carl.lsa").read_bytes()
        os.unlink(folder / "carl.lsa")  # another file: what is mapped must not be written to
        (folder / "carl.lsa").write_bytes(good[: len(good) // 2])
        done = change(server, "load", "carl")
        assert (done.state, done.version) == ("refused", 1)
        assert str(folder / "carl.lsa") in done.reason
        assert "/proc/" not in done.reason
        log = server.log_path.read_text()
        assert "cannot load an avatar" in log
        assert "/proc/" not in log, "an engine names the file, too"
        await speaks(session, 1)
        assert await seen(server, "carl") == 192
        when(server, "carl", {1})
    for name in ("nobody", "../carl", "a\nb", "carl.lsa", "x" * 900, "\u202e", ""):
        if name:
            assert change(server, "load", name).state == "missing", name
            assert change(server, "unload", name).state == "missing", name
    assert change(server, "load", "dora", str(folder / "nothing.lsa")).state == "missing"
    assert change(server, "load", "dora", "/dev/null").state == "refused"


@in_trio
async def test_the_default_avatar_is_replaced_and_not_unloaded(
    server: LocalServer, tiny_avatar: Path, folder: Path
) -> None:
    before = versions(server, "base").keys()
    async with lipsync_fast.connect(server.url) as session:
        assert change(server, "unload", "base").state == "refused"
        put(tiny_avatar, folder / "base.lsa", 240)
        assert load(server, "base") == ("loaded", max(before) + 1)
        assert await seen(server, "") == 240
        assert await seen(server, "base") == 240
        await speaks(session, 1)


@in_trio
async def test_many_at_once_and_in_a_row(
    server: LocalServer, tiny_avatar: Path, folder: Path
) -> None:
    """Quick replacements by several people, and a session that keeps the first version."""
    put(tiny_avatar, folder / "emil.lsa", 192)
    states: list[str] = []

    async def again(person: int) -> None:
        for number in range(5):
            made = put(tiny_avatar, folder / f"emil-{person}.lsa", 208 + 16 * (number % 2))
            done = await trio.to_thread.run_sync(change, server, "load", "emil", str(made))
            states.append(done.state)

    async with lipsync_fast.connect(server.url, avatar="emil") as session:
        async with trio.open_nursery() as nursery:
            for person in range(5):
                nursery.start_soon(again, person)
            for number in (1, 2):
                await speaks(session, number)
        assert states.count("loaded") + states.count("unchanged") == 25, states
        assert states.count("loaded") > 10
        newest = max(versions(server, "emil"))
        when(server, "emil", {1, newest})


@in_trio
async def test_more_versions_than_may_be(
    server: LocalServer, tiny_avatar: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tiny_avatar, folder / "fred.lsa", 192)
    async with trio.open_nursery() as nursery:

        async def stay(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            async with lipsync_fast.connect(server.url, avatar="fred", idle=False):
                task_status.started()
                await trio.sleep_forever()

        await nursery.start(stay)
        for number in range(2, 9):
            put(tiny_avatar, folder / "fred.lsa", 192 + 16 * (number % 3))
            done: AvatarChanged = await trio.to_thread.run_sync(change, server, "load", "fred")
            assert (done.state, done.version) == ("loaded", number)
            await nursery.start(stay)
        put(tiny_avatar, folder / "fred.lsa", 192)
        late: AvatarChanged = await trio.to_thread.run_sync(change, server, "load", "fred")
        assert (late.state, late.version) == ("late", 8)
        assert "8 versions" in late.reason
        nursery.cancel_scope.cancel()
    done = await trio.to_thread.run_sync(change, server, "load", "fred")
    assert (done.state, done.version) == ("loaded", 9), "those who had the others have gone"


# ---------------------------------------------------------------- engines and fronts die
@in_trio
async def test_an_old_version_outlives_engines(
    server: LocalServer, tiny_avatar: Path, folder: Path
) -> None:
    """Its file is gone, and all engines that had loaded it; its session goes on."""
    put(tiny_avatar, folder / "gina.lsa", 192)
    async with lipsync_fast.connect(server.url, avatar="gina") as session:
        put(tiny_avatar, folder / "gina.lsa", 208)
        assert load(server, "gina") == ("loaded", 2)
        for _ in range(2):  # the working one, and the spare that follows it
            status = server.status()
            working = next(e for e in status.engines if e.state == "ready")
            os.kill(working.pid, signal.SIGKILL)
            end = time.monotonic() + 60
            while True:
                engines = server.status().engines
                ready = {e.state for e in engines} == {"ready", "spare"}
                if ready and working.name not in {e.name for e in engines}:
                    break
                assert time.monotonic() < end, server.log()[-3000:]
                await trio.sleep(0.05)
            assert all(len(v.engines) == 2 for v in versions(server, "gina").values())
        await speaks(session, 1)
        assert await seen(server, "gina") == 208


@in_trio
async def test_a_load_while_an_engine_and_the_front_die(
    server: LocalServer, tiny_avatar: Path, folder: Path
) -> None:
    put(tiny_avatar, folder / "hans.lsa", 192)
    assert load(server, "hans")[0] == "loaded"
    for role in ("engine", "front"):
        put(tiny_avatar, folder / "hans.lsa", 208 if role == "engine" else 224)
        status = server.status()
        pids = [c.pid for c in (status.engines if role == "engine" else status.fronts)]
        done: list[AvatarChanged] = []
        async with trio.open_nursery() as nursery:

            async def asked(done: list[AvatarChanged] = done) -> None:
                done.append(await trio.to_thread.run_sync(change, server, "load", "hans"))

            nursery.start_soon(asked)
            await trio.sleep(0.05)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        assert done[0].state in ("loaded", "refused"), done
        if done[0].state == "refused":  # all engines died while they loaded it
            assert load(server, "hans")[0] == "loaded"
        with trio.fail_after(60):
            while True:  # until its successor listens
                try:
                    assert await seen(server, "hans") == (208 if role == "engine" else 224)
                    break
                except SessionError:
                    await trio.sleep(0.05)
    when(server, "hans", {max(versions(server, "hans"))})


def test_what_kills_engines_is_refused(tmp_path: Path) -> None:
    """One engine at a time loads it, a spare first: who is served has an engine all the time."""
    for name in ("good", "cursed", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    config = f"[avatars]\nfolders = ['{tmp_path}']\n[engines]\ngpus = 'none'\nspares = 2\n"
    options = {"deadly": ["cursed"], "bad": {"bad": "it is damaged"}}
    with stand_ins(config, options) as run:
        working = next(e.name for e in run.serving(spares=2).engines if e.state == "ready")
        with ControlClient(run.folder) as client:
            done = client.change("load", "cursed")
            assert (done.state, done.version) == ("refused", 0)
            assert "died" in done.reason
            assert client.change("load", "bad").reason == "it is damaged"
            done = client.change("load", "good")
            assert (done.state, done.version) == ("loaded", 1)
        status = run.serving(spares=2)
        assert working in {e.name for e in status.engines if e.state == "ready"}
        deaths = sum(e.restarts for e in status.engines)
        assert deaths == 2
        assert [a.name for a in status.avatars] == ["demo", "good"]
        for engine in status.engines:
            spec = run.notes(engine.name, "born")[0]["spec"]
            assert "cursed" not in spec["avatars"]


# ---------------------------------------------------------------- nothing is left
@in_trio
async def test_nothing_grows(server: LocalServer, tiny_avatar: Path, folder: Path) -> None:
    """Twelve rounds under two sessions that speak: descriptors are what they were."""

    def descriptors() -> dict[str, int]:
        end, status = time.monotonic() + 30, server.status()
        while not all(len(a.engines) == 2 for a in status.avatars if a.version):
            assert time.monotonic() < end, status.avatars
            time.sleep(0.1)
            status = server.status()
        children = [*status.engines, *status.fronts]
        pids = {c.name: c.pid for c in children} | {"supervisor": status.pid}
        return {name: open_fds(pid) for name, pid in pids.items()}

    def change_all() -> None:
        for number in range(12):
            put(tiny_avatar, folder / "ines.lsa", 192 + 16 * (number % 2))
            assert load(server, "ines")[0] == "loaded"
            put(tiny_avatar, folder / "ines.lsa", 224)
            assert load(server, "ines")[0] == "loaded"
            assert change(server, "unload", "ines").state == "unloaded"

    async def speak_on(session: Session) -> None:
        for number in range(2, 8):
            await speaks(session, number)

    put(tiny_avatar, folder / "ines.lsa", 192)
    async with (
        lipsync_fast.connect(server.url, avatar="ines") as one,
        lipsync_fast.connect(server.url) as two,
    ):
        await speaks(one, 1)
        await speaks(two, 1)
        before = descriptors()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, change_all)
            for session in (one, two):
                nursery.start_soon(speak_on, session)
        when(server, "ines", {0, 1})
        end = time.monotonic() + 30
        while any(after > before.get(n, 0) + 3 for n, after in descriptors().items()):
            assert time.monotonic() < end, (before, descriptors())
            await trio.sleep(0.1)


# ---------------------------------------------------------------- ways in
def asked(
    server: LocalServer, method: str, name: str, body: object = None, **headers: str
) -> tuple[int, dict[str, object]]:
    data = None if body is None else json.dumps(body).encode()
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    request = Request(f"{server.http_url}/v1/avatars/{name}", data, named, method=method)
    try:
        with urlopen(request, timeout=90) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else {"error": text}


def test_over_http(server: LocalServer, tiny_avatar: Path, folder: Path, tmp_path: Path) -> None:
    put(tiny_avatar, folder / "jana x.lsa")
    name = "jana%20x"
    done = {"name": "jana x", "version": 1, "state": "loaded", "reason": ""}
    assert asked(server, "POST", name) == (200, done)
    status, facts = asked(server, "GET", name)
    assert (status, facts["version"], facts["height"]) == (200, 1, 192)
    assert asked(server, "POST", name)[1]["state"] == "unchanged"
    other = put(tiny_avatar, folder / "other.lsa", 208)
    assert asked(server, "POST", name, {"path": str(other)})[1]["version"] == 2
    assert asked(server, "GET", name)[1]["height"] == 208
    status, told = asked(server, "POST", name, {"path": str(put(tiny_avatar, tmp_path / "x.lsa"))})
    assert (status, told["state"]) == (409, "refused")
    assert asked(server, "POST", name, {"path": f"{folder}/../x.lsa"})[0] == 409
    assert asked(server, "POST", name, {"way": 1})[0] == 400
    assert asked(server, "POST", "nobody")[0] == 404
    assert asked(server, "DELETE", "base")[0] == 409
    assert asked(server, "DELETE", name)[1]["state"] == "unloaded"
    assert asked(server, "GET", name)[0] == 404
    with urlopen(f"{server.http_url}/v1/avatars", timeout=60) as answer:
        listed = json.load(answer)
    assert "jana x" in listed["unloaded"]
    assert "jana x" not in {a["name"] for a in listed["avatars"]}
    with urlopen(f"{server.http_url}/metrics", timeout=60) as answer:
        metrics = answer.read().decode()
    assert 'lipsync_fast_avatar_version{avatar="jana x"} 0.0' in metrics


def test_who_may(server: LocalServer) -> None:
    for headers in (
        {"X_Forwarded_For": "203.0.113.9"},
        {"Forwarded": "for=203.0.113.9"},
        {"Origin": "https://elsewhere.example"},
        {"X_Real_IP": "203.0.113.9", "Authorization": "Bearer something else"},
    ):
        assert asked(server, "DELETE", "base", **headers)[0] == 403, headers
    shown = {"Authorization": f"Bearer {TOKEN}", "X_Forwarded_For": "203.0.113.9"}
    assert asked(server, "DELETE", "base", **shown)[0] == 409


def test_from_the_command_line(server: LocalServer, tiny_avatar: Path, tmp_path: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lipsync_fast", "avatar", *args]
        where = ["--folder", str(server.folder)]
        return subprocess.run(
            [*command, *where], capture_output=True, text=True, timeout=100, check=False
        )

    shutil.copytree(tiny_avatar, tmp_path / "kurt")  # a folder, outside of the server's folders
    done = run("load", "kurt", str(tmp_path / "kurt"))
    assert (done.returncode, done.stdout) == (0, "kurt: loaded, version 1\n"), done
    assert run("load", "kurt", str(tmp_path / "kurt")).stdout.startswith("kurt: unchanged")
    done = run("unload", "kurt", "--json")
    assert json.loads(done.stdout)["state"] == "unloaded"
    done = run("unload", "base")
    assert done.returncode == 2
    assert "cannot be unloaded" in done.stderr
    assert run("load", "nobody").returncode == 2


# ---------------------------------------------------------------- folders that are watched
def test_a_watched_folder(tiny_avatar: Path, tmp_path: Path) -> None:
    config = {
        "avatars": {"folders": [str(tmp_path)], "default": "base", "watch": 0.1},
        "engines": {"gpus": "none", **ALONE},
    }
    put(tiny_avatar, tmp_path / "base.lsa")
    with LocalServer(config) as server:
        good = put(tiny_avatar, tmp_path / "base.lsa", 208).read_bytes()
        when(server, "base", {2})
        with open(tmp_path / "lena.lsa", "wb") as file:  # written slowly, under its own name
            for at in range(0, len(good), len(good) // 8 + 1):
                file.write(good[at : at + len(good) // 8 + 1])
                file.flush()
                time.sleep(0.15)
        until_current(server, "lena", 1)
        assert trio.run(seen, server, "lena") == 208
        os.unlink(tmp_path / "lena.lsa")
        when(server, "lena", set())
        with pytest.raises(SessionError, match="no avatar"):
            trio.run(seen, server, "lena")
        (tmp_path / "mara.lsa").write_bytes(good[: len(good) // 3])
        end = time.monotonic() + 60
        while "avatar=mara" not in server.log():
            assert time.monotonic() < end
            time.sleep(0.02)
        put(tiny_avatar, tmp_path / "mara.lsa", 224)
        until_current(server, "mara", 1)
        assert trio.run(seen, server, "mara") == 224
