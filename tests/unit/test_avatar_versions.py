# SPDX-License-Identifier: Apache-2.0
"""Parts of changing avatars in a running server: who may, what is kept open, who uses what."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import trio
from entering import entrance, refused
from legacy_world import MemorySocket, World, got, request, world
from variants import put

from lipsync_fast.avatars.identity import identity_of
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.config import Avatars, Listen
from lipsync_fast.engine.caches import ByteLru
from lipsync_fast.errors import AvatarError, AvatarFormatError, AvatarNotFoundError
from lipsync_fast.frontend.access.admin import is_local
from lipsync_fast.frontend.avatars.leases import Catalogue
from lipsync_fast.ipc.control import AvatarVersion, EngineInfo, Engines
from lipsync_fast.machine import FOR_OTHERS
from lipsync_fast.supervisor.avatar_catalogue import AvatarCatalogue
from lipsync_fast.supervisor.avatar_folders import AvatarFolders
from lipsync_fast.supervisor.versions import OpenedPackage

LOCAL = {"Host": "127.0.0.1:8086"}
TOKEN = {"Authorization": "Bearer admin"}


# ---------------------------------------------------------------- who may
def status(peer: str, listen: Listen | None = None, query: str = "", **headers: str) -> int:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    found = refused(entrance(listen).admit_change(given.get, f"/?{query}", peer, peer))
    return 200 if found is None else found.status


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
def test_this_machine_may(peer: str) -> None:
    assert is_local(peer)
    assert status(peer, **LOCAL) == 200
    assert status(peer, Origin="http://127.0.0.1:8086", **LOCAL) == 200
    listen = Listen(token="all")
    assert status(peer, listen, **LOCAL) == 401
    assert status(peer, listen, "token=all", **LOCAL) == 200


@pytest.mark.parametrize("peer", ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "", "localhost"])
def test_others_may_not(peer: str) -> None:
    assert status(peer, **LOCAL) == 403
    assert status(peer, Listen(token="all"), "token=all", **LOCAL) == 403
    assert status(peer, Authorization="Bearer ", **LOCAL) == 403, "no token is configured"


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Forwarded_For": "127.0.0.1"},
        {"X_Real_IP": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"CF_Connecting_IP": "127.0.0.1"},
        {"True_Client_IP": "127.0.0.1"},
        {"X_Client_IP": "127.0.0.1"},
        {"X_Forwarded_Proto": "https"},
        {"X_Envoy_External_Address": "127.0.0.1"},
        {"Origin": "http://somebody@127.0.0.1:8086"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8087"},
    ],
)
def test_neither_proxies_nor_pages_are_this_machine(headers: dict[str, str]) -> None:
    listen = Listen(admin_token="admin", origins=("*",))
    assert status("127.0.0.1", listen, **LOCAL, **headers) == 403
    assert status("127.0.0.1", listen, **LOCAL, **headers, **TOKEN) == 200


def test_a_name_that_was_made_to_point_here_is_nobody() -> None:
    listen = Listen(host="0.0.0.0")
    rebound = {"Host": "evil.example:8086", "Origin": "http://evil.example:8086"}
    assert status("127.0.0.1", listen, **rebound) == 403
    assert status("127.0.0.1", Listen(), Host="evil.example") == 403


def test_the_admin_token() -> None:
    listen = Listen(admin_token="admin", token="all")
    assert status("192.0.2.1", listen, **LOCAL, **TOKEN) == 200
    assert status("192.0.2.1", listen, Authorization="Bearer all", **LOCAL) == 403
    assert status("192.0.2.1", listen, "token=admin", **LOCAL) == 403, "addresses end up in logs"


# ---------------------------------------------------------------- what is kept open
def test_a_file_is_kept_when_another_takes_its_place(tiny_avatar: Path, tmp_path: Path) -> None:
    place = OpenedPackage(put(tiny_avatar, tmp_path / "a.lsa", 192))
    put(tiny_avatar, tmp_path / "a.lsa", 208)
    assert identity_of(tmp_path / "a.lsa") != place.identity
    with AvatarPackage.open(place.open_path) as package:
        assert package.manifest.frame_height == 192
    os.unlink(tmp_path / "a.lsa")
    with AvatarPackage.open(place.open_path) as package:
        package.verify()
    place.close()
    place.close()


def test_errors_name_the_file_and_not_the_descriptor_that_it_is_opened_by(
    tiny_avatar: Path, tmp_path: Path
) -> None:
    cut, other = tmp_path / "cut.lsa", tmp_path / "other.lsa"
    put(tiny_avatar, other)
    good = other.read_bytes()
    cut.write_bytes(good[: len(good) // 2])
    place = OpenedPackage(cut)
    for _ in range(2):
        with pytest.raises(AvatarFormatError) as refused:
            AvatarPackage.open(place.open_path)
        assert str(refused.value).startswith(f"{cut}: "), refused.value
        assert "/proc/" not in str(refused.value)
        os.replace(other, cut) if other.exists() else None  # the name is another file's by now
    place.close()
    place = OpenedPackage(cut)
    os.unlink(cut)
    with AvatarPackage.open(place.open_path) as package:
        assert package.path == cut
        package.verify()
    place.close()


def test_what_cannot_be_a_package(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.lsa")
    for path, error in (
        (tmp_path / "none.lsa", AvatarNotFoundError),
        (tmp_path, AvatarNotFoundError),
        (tmp_path / "pipe.lsa", AvatarFormatError),
        (Path("/dev/null"), AvatarFormatError),
        (tmp_path / ("x" * 4000), AvatarError),
        (tmp_path / "a\0b", AvatarNotFoundError),
    ):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(error):
            OpenedPackage(path)
        assert identity_of(path) is None
        assert len(os.listdir("/proc/self/fd")) == before


def test_paths_from_elsewhere_lie_in_the_folders(tiny_avatar: Path, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir(), outside.mkdir()
    put(tiny_avatar, inside / "a.lsa")
    put(tiny_avatar, outside / "b.lsa")
    (inside / "link.lsa").symlink_to(outside / "b.lsa")
    folders = AvatarFolders(Avatars(folders=(str(inside),), default="a"))
    folders.open("x", str(inside / "a.lsa"), anywhere=False).close()
    folders.open("x", str(outside / "b.lsa"), anywhere=True).close()
    for path in (
        outside / "b.lsa",
        inside / ".." / "out" / "b.lsa",
        inside / "link.lsa",
        Path("a.lsa"),
        inside,
    ):
        with pytest.raises(AvatarError, match="outside"):
            folders.open("x", str(path), anywhere=False)
    for name in ("", "..", "a/b", "a.lsa", "a\nb", "\x1b[2J"):
        with pytest.raises(AvatarError):
            folders.open(name, str(inside / "a.lsa"))


def test_names_are_looked_for_in_the_folders_alone(
    tiny_avatar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the folder in which the server was started, nor above it."""
    for folder in ("here", "in"):
        (tmp_path / folder).mkdir()
    for place in (tmp_path / "here" / "anna", tmp_path / "manifest.json"):
        place.symlink_to(tiny_avatar if place.name == "anna" else tiny_avatar / "manifest.json")
    put(tiny_avatar, tmp_path / "in" / "base.lsa")
    monkeypatch.chdir(tmp_path / "here")
    folders = AvatarFolders(Avatars(folders=(str(tmp_path / "in"),), default="base"))
    for name in ("anna", ".."):
        with pytest.raises(AvatarNotFoundError):
            folders.locate(name)


def test_keys_and_numbers(tiny_avatar: Path, tmp_path: Path) -> None:
    """No key comes twice; numbers count what sessions could get."""
    put(tiny_avatar, tmp_path / "a.lsa")
    catalogue = AvatarCatalogue(AvatarFolders(Avatars(folders=(str(tmp_path),), default="a")))
    try:
        first = catalogue.current["a"]
        assert (first.key, first.number) == ("a", 1)
        refused = catalogue.add_candidate("a", OpenedPackage(tmp_path / "a.lsa"))
        catalogue.discard(refused)
        second = catalogue.add_candidate("a", OpenedPackage(tmp_path / "a.lsa"))
        assert refused.key != second.key
        before = catalogue.number
        catalogue.accept(second)
        assert (second.number, first.retired_in) == (2, before + 1)
        assert catalogue.keys == [second.key, first.key], "the default's current one first"
        assert catalogue.forget_unused([]) == [first]
        catalogue.withdraw("b")
        assert catalogue.unloaded == {"b"}
        catalogue.use("b", OpenedPackage(tmp_path / "a.lsa"))
        assert not catalogue.unloaded
    finally:
        catalogue.close()


def test_avatars_leave_descriptors_for_engines(tiny_avatar: Path, tmp_path: Path) -> None:
    """As many avatars as there are files open for, and then a sentence; not a server that cannot
    replace an engine."""
    put(tiny_avatar, tmp_path / "a.lsa")
    most, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[OpenedPackage] = []
    limit = len(os.listdir("/proc/self/fd")) + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        refused = ""
        while not refused:
            try:
                opened.append(OpenedPackage(tmp_path / "a.lsa"))
            except AvatarFormatError as error:
                refused = str(error)
        assert refused.endswith(f"(ulimit -n {limit}); raise that, or unload others")
        assert 100 <= len(opened) <= limit - FOR_OTHERS
        kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)]
        for fd in kept:
            os.close(fd)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        for package in opened:
            package.close()


def test_what_harms_engines_is_not_loaded_again_for_a_client(
    tiny_avatar: Path, tmp_path: Path
) -> None:
    """Until its files are others, or somebody has it loaded by name."""
    for name in ("a", "bad"):
        put(tiny_avatar, tmp_path / f"{name}.lsa")
    catalogue = AvatarCatalogue(AvatarFolders(Avatars(folders=(str(tmp_path),), default="a")))
    try:
        version = catalogue.use("bad", OpenedPackage(tmp_path / "bad.lsa"))
        catalogue.on_failure(catalogue.default_key, "bad_alloc")
        assert "a" in catalogue.current, "clients that name none need one"
        catalogue.on_failure(version.key, "bad_alloc")
        catalogue.on_failure(version.key, "bad_alloc")  # another engine says so, too
        assert "bad" not in catalogue.current
        again = OpenedPackage(tmp_path / "bad.lsa")
        assert catalogue.is_banned("bad", again)
        assert catalogue.errors.reason("bad") == "its frames fail: bad_alloc"
        assert not catalogue.is_banned("a", again)
        put(tiny_avatar, tmp_path / "bad.lsa")
        other = OpenedPackage(tmp_path / "bad.lsa")
        assert not catalogue.is_banned("bad", other)
        other.close()
        catalogue.accept(catalogue.add_candidate("bad", again))
        assert not catalogue.is_banned("bad", again)
    finally:
        catalogue.close()


# ---------------------------------------------------------------- fronts
def update(path: Path, key: str, *unloaded: str) -> Engines:
    versions = [AvatarVersion(name="anna", key=key, number=1, path=str(path))] if key else []
    return Engines(engines=[], avatars=versions, unloaded=list(unloaded), catalogue=7)


def test_use_is_counted(tiny_avatar: Path, tmp_path: Path) -> None:
    catalogue = Catalogue(None)
    catalogue.apply_update(update(put(tiny_avatar, tmp_path / "a.lsa", 192), "anna"))
    version = catalogue.current("anna")
    assert version is not None
    lease = catalogue.lease(version)
    with lease.using() as too:
        assert catalogue.uses == {"anna": 2}
        assert too.package is lease.package
    catalogue.apply_update(update(put(tiny_avatar, tmp_path / "a.lsa", 208), "anna/2"))
    new = catalogue.current("anna")
    assert new is not None
    assert catalogue.open(new).manifest.frame_height == 208
    assert lease.copy().package.manifest.frame_height == 192
    assert catalogue.uses == {"anna": 2}
    lease.release()
    lease.release()
    assert catalogue.uses == {"anna": 1}, "twice is once"
    catalogue.close()


def test_what_is_looked_at_is_as_it_is_now(tiny_avatar: Path, tmp_path: Path) -> None:
    catalogue, path = Catalogue(None), tmp_path / "a.lsa"
    seen = catalogue.peek(put(tiny_avatar, path, 192))
    assert catalogue.peek(path) is seen
    put(tiny_avatar, path, 208)
    assert catalogue.peek(path).manifest.frame_height == 208
    assert bytes(seen.frame_jpeg(0)), "who looks keeps what they have"
    os.unlink(path)
    with pytest.raises(AvatarNotFoundError):
        catalogue.peek(path)
    catalogue.close()


def test_an_old_client_keeps_the_version_of_its_sound(tiny_avatar: Path, tmp_path: Path) -> None:
    def window(first: int) -> bytes:
        """A window of a sound whose chunks all differ."""
        return b"".join(bytes([k & 255, k >> 8]) * 960 for k in range(first, first + 16))

    async def main() -> None:
        async with world(tiny_avatar.parent) as w:
            w.engine.at_once = False
            client = w.connect(request(0, window(1)))
            await answer_one(w, client, "tiny")
            replaced(w, put(tiny_avatar, tmp_path / "tiny.lsa", 208))
            client.say(request(1, window(2)))
            await answer_one(w, client, "tiny")
            assert w.services.avatars.catalogue.uses == {"tiny": 1}
            client.say(request(2, window(500)))
            await answer_one(w, client, "tiny/2")
            assert w.services.avatars.catalogue.uses == {"tiny/2": 1}
            client.say(request(3))
            await answer_one(w, client, "tiny/2")
            client.vanish()
            while w.services.avatars.catalogue.uses:
                await trio.sleep(0.001)

    async def answer_one(w: World, client: MemorySocket, key: str) -> None:
        await w.engine.asked(1)
        w.engine.answer(0)
        assert got(await client.hear()).job.avatar == key

    def replaced(w: World, path: Path) -> None:
        info = EngineInfo(
            name="engine-1", device="cpu", active=True, capacity=50.0, avatars=["tiny", "tiny/2"]
        )
        new = AvatarVersion(name="tiny", key="tiny/2", number=2, path=str(path))
        w.services.apply_update(Engines(engines=[info], avatars=[new], catalogue=2))

    trio.run(main)


# ---------------------------------------------------------------- figures
def test_a_cache_knows_whose_its_bytes_are() -> None:
    cache: ByteLru[int] = ByteLru(100)
    for owner, number, size in (("a", 1, 30), ("b", 1, 40), ("a", 2, 20)):
        cache.get((owner, number), lambda size=size: (0, size))
    assert (cache.used_by("a"), cache.used_by("b"), cache.used_by("c")) == (50, 40, 0)
    cache.get(("b", 2), lambda: (0, 40))
    assert (cache.used_by("a"), cache.used_by("b")) == (20, 80), "the oldest one has gone"
    cache.take(("b", 2))
    cache.forget("a")
    assert (cache.used_by("a"), cache.used_by("b"), cache.used) == (0, 40, 40)
