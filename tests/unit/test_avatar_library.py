# SPDX-License-Identifier: Apache-2.0
"""Finding avatars: by name and path, in which order, and past broken ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lipsync_fast.avatars.library import VARIABLE, AvatarLibrary, shipped_folder, user_folder
from lipsync_fast.avatars.writer import pack
from lipsync_fast.errors import AvatarNotFoundError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without avatars, in an empty working directory."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "home"


def put(package: Path, folder: Path, name: str) -> Path:
    """A copy of a package (as a file where the name says so) in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    if name.endswith(".lsa"):
        pack(package, folder / name)
    else:
        shutil.copytree(package, folder / name)
    return folder / name


def test_by_name_as_folder_and_as_file(tiny_avatar: Path, tmp_path: Path) -> None:
    folder = put(tiny_avatar, tmp_path / "a", "ann")
    file = put(tiny_avatar, tmp_path / "a", "bob.lsa")
    library = AvatarLibrary([tmp_path / "a"])
    assert library.find("ann") == folder
    assert library.find("bob") == file


def test_by_path(tiny_avatar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tiny_avatar, tmp_path / "cwd", "ann")
    put(tiny_avatar, tmp_path / "cwd", "bob.lsa")
    library = AvatarLibrary()
    assert library.find(tiny_avatar) == tiny_avatar
    assert library.find("bob.lsa") == Path("bob.lsa")
    assert library.find("ann") == Path("ann"), "a package in the working directory"
    for missing in (tmp_path / "no" / "such", "no/such", "such.lsa"):
        with pytest.raises(AvatarNotFoundError, match="no such avatar package") as caught:
            library.find(missing)
        assert str(missing) in str(caught.value)


def test_order_of_folders(
    tiny_avatar: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [tmp_path / "env1", tmp_path / "env2"]
    monkeypatch.setenv(VARIABLE, os.pathsep.join(["", *map(str, named)]))
    given = [tmp_path / "given1", tmp_path / "given2"]
    assert user_folder() == home / "lipsync-fast" / "avatars"
    order = [*given, *named, user_folder()]
    library = AvatarLibrary(given)
    assert library.folders == [*order, shipped_folder()]
    for folder in reversed(order):
        path = put(tiny_avatar, folder, "ann")
        assert library.find("ann") == path
        assert {i.name: i.path for i in library.list()}["ann"] == path


def test_unknown_name_says_where_and_what_there_is(tiny_avatar: Path, tmp_path: Path) -> None:
    put(tiny_avatar, tmp_path / "a", "ann")
    put(tiny_avatar, tmp_path / "a", "bob.lsa")
    library = AvatarLibrary([tmp_path / "a"])
    with pytest.raises(AvatarNotFoundError) as caught:
        library.find("zzzzzz")
    for word in ("'zzzzzz'", str(tmp_path / "a"), "ann", "bob"):
        assert word in str(caught.value)
    with pytest.raises(AvatarNotFoundError, match=r"there are: ann$"):
        library.find("an")


@pytest.mark.parametrize("name", ["x" * 5_000, "x" * 5_000 + ".lsa", "a/" + "x" * 300, "a\0b", ""])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(AvatarNotFoundError):
        AvatarLibrary([tmp_path, tmp_path / "not-there"]).find(name)


def test_broken_ones_are_listed_with_their_error(tiny_avatar: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    put(tiny_avatar, folder, "good")
    put(tiny_avatar, folder, "better.lsa")
    for name, data in (("json", b"{"), ("list", b"[]"), ("noise", bytes(range(256)))):
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_bytes(data)
    (folder / "empty.lsa").touch()
    (folder / "text.lsa").write_text("hello")
    (put(tiny_avatar, folder, "halved") / "frames.bin").write_bytes(b"x")
    (folder / "something-else").mkdir()
    (folder / "readme.txt").touch()
    (folder / ".good.0123.part").mkdir()
    shutil.copy(tiny_avatar / "manifest.json", folder / ".good.0123.part")
    found = {i.name: i for i in AvatarLibrary([folder]).list() if i.path.parent == folder}
    assert sorted(found) == [
        "better", "empty", "good", "halved", "json", "list", "noise", "text"
    ]  # fmt: skip
    assert list(found) == sorted(found)
    for name, info in found.items():
        if name in ("good", "better"):
            assert info.error is None
            assert info.manifest is not None
            assert info.manifest.frame_count == 5
        else:
            assert info.manifest is None
            assert info.error is not None
            assert str(info.path) in info.error
    assert "frames.bin" in str(found["halved"].error)


def test_a_folder_that_cannot_be_listed_is_passed_over(
    tiny_avatar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tiny_avatar, tmp_path / "a", "ann")
    whole = Path.iterdir

    def refuse(self: Path) -> object:  # as the system does; root may list everything
        if self == tmp_path / "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return whole(self)

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    library = AvatarLibrary([tmp_path / "closed", tmp_path / "a"])
    assert library.find("ann") == path
    assert "ann" in [i.name for i in library.list()]
