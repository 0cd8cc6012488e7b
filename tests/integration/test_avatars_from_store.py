# SPDX-License-Identifier: Apache-2.0
"""A server whose avatars lie in a store: it starts without it, follows it, and is not held up."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from even_server import EVEN
from ranges import FileServer, serving_files
from talking import ALONE, SLOW_MACHINE, assert_whole, in_trio, say, speech, spoken, utterance
from variants import put

import lipsync_fast
from lipsync_fast.avatars.publish import publish, unpublish
from lipsync_fast.avatars.signing import new_key, read_private_key, sign_package
from lipsync_fast.client.local import LocalServer
from lipsync_fast.errors import LipsyncError

pytest.importorskip("obstore", reason="the extra store is not installed")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileServer]:
    """A store behind an HTTP server."""
    (tmp_path / "www").mkdir()
    with serving_files(tmp_path / "www") as server:
        yield server


def config(store: FileServer, tmp_path: Path, **avatars: object) -> dict[str, object]:
    return {
        "live": {"speakers": 4, **SLOW_MACHINE},
        "avatars": {
            "folders": [store.url],
            "default": "base",
            "cache": str(tmp_path / "cache"),
            "watch": 0.2,
        }
        | avatars,
        "engines": {"gpus": "none", **ALONE},
    }


def offer(store: FileServer, tiny: Path, name: str, height: int = 192) -> None:
    package = put(tiny, store.folder.parent / f"{name}-{height}.lsa", height)
    publish(package, store.folder.as_uri(), name)


def wait(server: LocalServer, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, server.log()[-3000:]
        time.sleep(0.05)


def current(server: LocalServer, name: str) -> int:
    """The version of an avatar that sessions get; 0 where it is not in use."""
    found = [a.version for a in server.status().avatars if a.name == name and a.state == "current"]
    return max(found, default=0)


async def height(server: LocalServer, name: str) -> int:
    async with lipsync_fast.connect(server.url, avatar=name) as session:
        return session.started.height


@in_trio
async def test_a_server_follows_its_store(
    store: FileServer, tiny_avatar: Path, tmp_path: Path
) -> None:
    for name in ("base", "anna"):
        offer(store, tiny_avatar, name)
    with LocalServer(config(store, tmp_path), command=EVEN) as server:
        async with lipsync_fast.connect(server.url) as first:
            assert first.started.height == 192
            assert await height(server, "anna") == 192
            offer(store, tiny_avatar, "base", 208)
            wait(server, lambda: current(server, "base") == 2)
            assert await height(server, "base") == 208

            slow = threading.Event()
            store.before = lambda path: slow.wait(60) and None if "bob" in path else None
            offer(store, tiny_avatar, "bob", 176)
            wait(server, lambda: any("bob" in path for _, path, _ in store.asked))
            await say(first, speech(0.4))  # nobody waits for a store that is slow
            ended, events = await utterance(first, 1)
            assert_whole(ended, spoken(events), 10)
            slow.set()
            wait(server, lambda: current(server, "bob") == 1)
            assert await height(server, "bob") == 176

        index = (store.folder / "index.json").read_bytes()
        (store.folder / "index.json").write_bytes(b"<html>")
        wait(server, lambda: "is no index of a store" in server.log())
        (store.folder / "index.json").write_bytes(index)
        unpublish("anna", store.folder.as_uri())
        wait(server, lambda: "a store has an avatar no more" in server.log())
        wait(server, lambda: current(server, "anna") == 0)
        assert await height(server, "base") == 208


@in_trio
async def test_a_server_starts_without_its_store(
    store: FileServer, tiny_avatar: Path, tmp_path: Path
) -> None:
    offer(store, tiny_avatar, "base")
    with LocalServer(config(store, tmp_path), command=EVEN) as server:
        wait(server, lambda: "fetched an avatar" in server.log())
    shutil.move(store.folder / "index.json", tmp_path / "index.json")
    with LocalServer(config(store, tmp_path), command=EVEN) as server:
        assert await height(server, "base") == 192
        assert "a store of avatars cannot be used" in server.log()
        assert "going on with what is here already" in server.log()
    with pytest.raises(LipsyncError, match="base"):
        LocalServer(config(store, tmp_path / "empty"), command=EVEN).__enter__()


@in_trio
async def test_only_what_is_signed(store: FileServer, tiny_avatar: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="the extra sign is not installed")
    public = new_key(tmp_path / "key.pem")
    package = put(tiny_avatar, tmp_path / "signed.lsa")
    sign_package(package, read_private_key(tmp_path / "key.pem", str))
    publish(package, store.folder.as_uri(), "base")
    offer(store, tiny_avatar, "anna")
    with LocalServer(config(store, tmp_path, require_signed=str(public)), command=EVEN) as server:
        wait(server, lambda: "is not signed" in server.log())
        assert await height(server, "base") == 192
        with pytest.raises(lipsync_fast.SessionError):
            await height(server, "anna")
        offer(store, tiny_avatar, "base", 208)  # in a signed one's place
        wait(server, lambda: server.log().count("is not signed") >= 2)
        assert await height(server, "base") == 192
