# SPDX-License-Identifier: Apache-2.0
"""Stores of packages: what is fetched is whole and checked, comes once, and stays while it is used,
whatever the store, the network and other processes do meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ranges import FileServer, serving_files

from lipsync_fast import objects as objects_module
from lipsync_fast.avatars.cache import PackageCache
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.publish import publish, unpublish
from lipsync_fast.avatars.store import AvatarStore, found_at
from lipsync_fast.avatars.writer import pack
from lipsync_fast.errors import AvatarError, AvatarNotFoundError, AvatarStoreError

pytest.importorskip("obstore", reason="the extra store is not installed")
PIECE = 1000


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_module, "PIECE", PIECE)


@pytest.fixture
def cache(tmp_path: Path) -> PackageCache:
    return PackageCache(tmp_path / "cache", 100_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "www/packages").mkdir(parents=True)
    with serving_files(tmp_path / "www") as server:
        yield server


def put(server: FileServer, name: str, data: bytes) -> str:
    """Put bytes into a store as a package; gives their SHA-256."""
    sha256 = hashlib.sha256(data).hexdigest()
    key = f"packages/{name}-{sha256[:16]}.lsa"
    (server.folder / key).write_bytes(data)
    index = server.folder / "index.json"
    there = json.loads(index.read_text())["avatars"] if index.exists() else {}
    there[name] = {"file": key, "size": len(data), "sha256": sha256}
    write_index(server, there)
    return sha256


def write_index(server: FileServer, avatars: object) -> None:
    index = {"format": "lipsync-avatar-store", "version": 1, "avatars": avatars}
    (server.folder / "index.json").write_text(json.dumps(index))


def bodies(server: FileServer) -> list[str | None]:
    """Ranges of packages that were asked for."""
    return [span for method, path, span in server.asked if method == "GET" and ".lsa" in path]


def whole(cache: PackageCache) -> list[str]:
    return sorted(path.stem for path in (cache.folder / "packages").glob("*.lsa"))


def test_a_package_comes_once(server: FileServer, cache: PackageCache) -> None:
    data = os.urandom(3 * PIECE + 7)
    sha256 = put(server, "anna", data)
    come: list[int] = []
    path = AvatarStore(server.url, cache).find("anna", come.append)
    assert path.read_bytes() == data
    assert sum(come) == len(data)
    assert [span and span.split("=")[1] for span in bodies(server)] == [
        "0-999", "1000-1999", "2000-2999", "3000-3006",
    ]  # fmt: skip
    assert AvatarStore(server.url, cache).find("anna") == path
    assert len(bodies(server)) == 4, "it was here"
    assert whole(cache) == [sha256]
    with pytest.raises(AvatarNotFoundError, match="has no avatar 'bob'"):
        AvatarStore(server.url, cache).find("bob")


def test_an_index_that_has_not_changed_is_not_sent_again(
    server: FileServer, cache: PackageCache
) -> None:
    put(server, "anna", b"a")
    store = AvatarStore(server.url, cache)
    first = store.refresh()
    assert store.refresh() is first
    put(server, "bob", b"b")
    assert sorted(store.refresh().avatars) == ["anna", "bob"]


def test_what_was_cut_off_is_gone_on_with(server: FileServer, cache: PackageCache) -> None:
    data = os.urandom(5 * PIECE)
    put(server, "anna", data)

    def gone(path: str) -> None:
        if len(bodies(server)) > 2:
            raise ConnectionResetError

    server.before = gone
    with pytest.raises(AvatarStoreError, match="what has come is kept"):
        AvatarStore(server.url, cache).find("anna")
    assert whole(cache) == []
    server.before = lambda path: None
    server.asked.clear()
    assert AvatarStore(server.url, cache).find("anna").read_bytes() == data
    assert bodies(server)[0] == "bytes=2000-2999", "what had come does not come again"


def test_a_server_without_ranges(server: FileServer, cache: PackageCache) -> None:
    data = os.urandom(3 * PIECE)
    sha256 = put(server, "anna", data)
    (cache.folder / "packages" / f"{sha256}.part").write_bytes(data[:1500])
    server.ranges = False
    assert AvatarStore(server.url, cache).find("anna").read_bytes() == data


@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_damaged_is_never_used(
    server: FileServer, cache: PackageCache, ranges: bool
) -> None:
    data = os.urandom(3 * PIECE)
    sha256 = put(server, "anna", data)
    server.ranges = ranges
    file = next((server.folder / "packages").iterdir())
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(AvatarStoreError, match="is damaged, or another package"):
        AvatarStore(server.url, cache).find("anna")
    assert whole(cache) == []
    file.write_bytes(data[:-1])
    with pytest.raises(AvatarStoreError, match=r"has 2999 bytes, and should have 3000"):
        AvatarStore(server.url, cache).find("anna")
    file.write_bytes(data)
    assert AvatarStore(server.url, cache).find("anna").read_bytes() == data
    assert whole(cache) == [sha256]


def test_a_part_of_something_else_is_begun_anew(server: FileServer, cache: PackageCache) -> None:
    data = os.urandom(3 * PIECE)
    sha256 = put(server, "anna", data)
    (cache.folder / "packages" / f"{sha256}.part").write_bytes(bytes(2 * PIECE))
    assert AvatarStore(server.url, cache).find("anna").read_bytes() == data


ENTRY = {"file": "packages/a.lsa", "size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("index", "why"),
    [
        (b"<html>", "is no index of a store"),
        (b"\xff\xfe", "is no index of a store"),
        (b"[]", "is no index of a store"),
        (b'{"format": "other"}', "is no index of a store"),
        (b'{"format": "lipsync-avatar-store", "version": 2}', "update lipsync-fast"),
        ({"../anna": ENTRY}, "cannot be"),
        ({".anna": ENTRY}, "cannot be"),
        ({"a\nb": ENTRY}, "cannot be"),
        ({"anna.lsa": ENTRY}, "cannot be"),
        ({"anna": ENTRY | {"file": "../../etc/passwd"}}, "cannot be"),
        ({"anna": ENTRY | {"file": "/etc/passwd"}}, "cannot be"),
        ({"anna": ENTRY | {"size": 0}}, "cannot be"),
        ({"anna": ENTRY | {"sha256": "../../x"}}, "the checksum of 'anna' is none"),
        ({"anna": ENTRY | {"sha256": 3}}, "is no index of a store"),
        (b" " * (9 << 20), "expected at most"),
    ],
)
def test_an_index_that_cannot_be(
    server: FileServer, cache: PackageCache, index: object, why: str
) -> None:
    if isinstance(index, bytes):
        (server.folder / "index.json").write_bytes(index)
    else:
        write_index(server, index)
    with pytest.raises(AvatarStoreError, match=why):
        AvatarStore(server.url, cache).find("anna")
    assert whole(cache) == []


def test_a_store_that_cannot_be_reached(tmp_path: Path, cache: PackageCache) -> None:
    (tmp_path / "www/packages").mkdir(parents=True)
    with serving_files(tmp_path / "www") as server:
        put(server, "anna", b"anna")
        put(server, "bob", b"bob")
        url = server.url
        AvatarStore(url, cache).find("anna")
    store = AvatarStore(url, cache)
    assert store.find("anna").read_bytes() == b"anna"
    assert "going on with what is here" in store.warnings[0]
    with pytest.raises(AvatarStoreError):
        store.find("bob")
    with pytest.raises(AvatarStoreError):
        AvatarStore(url, PackageCache(tmp_path / "other", 1000)).find("anna")


def test_a_library_goes_on_without_a_store(
    tmp_path: Path, tiny_avatar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIPSYNC_FAST_AVATARS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LIPSYNC_FAST_AVATARS", f"http://127.0.0.1:9/store:{tiny_avatar.parent}")
    library = AvatarLibrary()
    assert library.find("tiny") == tiny_avatar
    assert "127.0.0.1:9" in library.warnings[0]


def test_what_is_replaced_while_it_is_looked_for(server: FileServer, cache: PackageCache) -> None:
    put(server, "anna", b"the first one")
    store = AvatarStore(server.url, cache)
    store.refresh()
    next((server.folder / "packages").iterdir()).unlink()
    put(server, "anna", b"the second one")
    assert store.find("anna").read_bytes() == b"the second one"


# ---------------------------------------------------------------- the cache
def test_what_was_not_used_for_long_makes_room(
    server: FileServer, cache: PackageCache, tmp_path: Path
) -> None:
    cache.most = 2500
    digests = {name: put(server, name, name.encode() * 1000) for name in "abcd"}
    store = AvatarStore(server.url, cache)
    store.find("a")
    store.find("b")
    store.find("a")
    store.find("c")
    assert whole(cache) == sorted([digests["a"], digests["c"]]), "b was used least lately"
    cache.most = 999
    with pytest.raises(AvatarStoreError, match="has no room"):
        store.find("d")


def test_what_is_mapped_stays(
    tmp_path: Path,
    tiny_avatar: Path,
    cache: PackageCache,
    server: FileServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects_module, "PIECE", 1 << 20)
    pack(tiny_avatar, tmp_path / "tiny.lsa")
    data = (tmp_path / "tiny.lsa").read_bytes()
    sha256 = put(server, "tiny", data)
    put(server, "other", bytes(2000))
    cache.most = len(data) + 1000
    store = AvatarStore(server.url, cache)
    with AvatarPackage.open(store.find("tiny")):
        with pytest.raises(AvatarStoreError, match="are in use"):
            store.find("other")
        assert whole(cache) == [sha256]
    store.find("other")
    assert sha256 not in whole(cache)


def test_two_processes_at_once(server: FileServer, tmp_path: Path) -> None:
    data = os.urandom(4000)
    put(server, "anna", data)
    both = threading.Barrier(2)

    def together(path: str) -> None:
        if path.endswith("index.json"):
            both.wait(60)

    server.before = together
    program = (
        "import sys; from pathlib import Path\n"
        "from lipsync_fast.avatars.cache import PackageCache\n"
        "from lipsync_fast.avatars.store import AvatarStore\n"
        "print(AvatarStore(sys.argv[1], PackageCache(Path(sys.argv[2]), 10**6)).find('anna'))"
    )
    command = [sys.executable, "-c", program, server.url, str(tmp_path / "shared")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    (path,) = paths
    assert Path(path).read_bytes() == data
    assert len(bodies(server)) == 1, "it came twice"


def test_no_room_and_no_place(server: FileServer, tmp_path: Path) -> None:
    put(server, "anna", b"anna")
    (tmp_path / "file").touch()
    with pytest.raises(AvatarStoreError, match=r"avatars\.cache"):
        PackageCache(tmp_path / "file", 1000)


# ---------------------------------------------------------------- publishing
def test_publish_replace_and_unpublish(tmp_path: Path, tiny_avatar: Path) -> None:
    url = (tmp_path / "store").as_uri()
    with pytest.raises(AvatarStoreError, match="there is no store"):
        AvatarStore(url, PackageCache(tmp_path / "cache", 10**8)).find("tiny")
    first = publish(tiny_avatar, url, "tiny")
    assert not first.unchanged
    assert publish(tiny_avatar, url, "tiny").unchanged
    store = AvatarStore(url, PackageCache(tmp_path / "cache", 10**8))
    with AvatarPackage.open(store.find("tiny")) as package:
        package.verify()
    pack(tiny_avatar, tmp_path / "o.lsa")
    publish(tmp_path / "o.lsa", url, "other")
    unpublish("tiny", url)
    assert list(store.refresh().avatars) == ["other"]
    left = sorted(path.name[:5] for path in (tmp_path / "store/packages").iterdir())
    assert left == ["other"]
    with pytest.raises(AvatarNotFoundError):
        unpublish("tiny", url)
    for name in ("", "a/b", ".hidden", "x" * 300):
        with pytest.raises(AvatarStoreError, match="no avatar can be called so"):
            publish(tiny_avatar, url, name)
    with pytest.raises(AvatarStoreError, match="nothing is published by HTTP"):
        publish(tiny_avatar, "http://127.0.0.1:9/x", "tiny")
    (tmp_path / "bad.lsa").write_bytes(b"no package")
    with pytest.raises(AvatarError):
        publish(tmp_path / "bad.lsa", url, "bad")
    assert list(store.refresh().avatars) == ["other"]


def test_many_publish_at_once(tmp_path: Path, tiny_avatar: Path) -> None:
    url = (tmp_path / "store").as_uri()
    pack(tiny_avatar, tmp_path / "tiny.lsa")
    names = [f"anna-{n}" for n in range(8)]
    in_threads([lambda name=name: publish(tmp_path / "tiny.lsa", url, name) for name in names])
    assert sorted(AvatarStore(url, PackageCache(tmp_path / "c", 1)).refresh().avatars) == names


def in_threads(calls: list[Callable[[], object]]) -> None:
    failed: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# ---------------------------------------------------------------- URLs of packages
def test_a_package_by_its_url(server: FileServer, cache: PackageCache) -> None:
    data = b"some package"
    sha256 = put(server, "an na", data)
    assert found_at(f"{server.url}/an%20na", cache=cache).read_bytes() == data
    file = server.folder / "bob.lsa"
    file.write_bytes(data * 2)
    with pytest.raises(AvatarStoreError, match="checksum is missing"):
        found_at(f"{server.url}/bob.lsa", cache=cache)
    digest = hashlib.sha256(data * 2).hexdigest()
    (server.folder / "bob.lsa.sha256").write_text(f"{digest}  bob.lsa\n")
    assert found_at(f"{server.url}/bob.lsa", cache=cache).read_bytes() == data * 2
    assert whole(cache) == sorted([sha256, digest])
    file.unlink()
    (server.folder / "bob.lsa.sha256").write_text("nothing")
    with pytest.raises(AvatarStoreError, match="holds no SHA-256"):
        found_at(f"{server.url}/bob.lsa", cache=cache)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/store/anna",
        "s3://key:hidden@bucket/anna",
        "https://host/anna?sig=hidden",
        "https://",
        "s3:///anna",
        "http://[/anna",
    ],
)
def test_urls_that_cannot_be(url: str, cache: PackageCache) -> None:
    with pytest.raises(AvatarStoreError) as error:
        found_at(url, cache=cache)
    assert "hidden" not in str(error.value)
    with pytest.raises(AvatarStoreError) as error:
        AvatarStore(url, cache).find("anna")
    assert "hidden" not in str(error.value)
