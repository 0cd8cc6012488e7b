# SPDX-License-Identifier: Apache-2.0
"""Packages from strangers, as a server opens and lists them: refused, measured, nothing touched.

Lying sizes, zips, links, indexes and pickles are tested in test_avatar_damage.py, networks in
test_trust_networks.py; here is what those leave: what is no file, pictures that cost more than they
show, manifests that two readers take for two things, and names.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import stat
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from trust import change, edit, linked, refused, replace, taken_in

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.storage import write_array
from lipsync_fast.errors import AvatarError, AvatarFormatError
from lipsync_fast.untrusted import limits

GIB = 1 << 30


def swap(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something else in a member's place."""

    def spoil(package: Path) -> None:
        (package / name).unlink()
        make(package / name)

    return spoil


def make_socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    try:  # the name of a socket must be short
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


def pile(package: Path, name: str, item: bytes) -> None:
    """Five times the same in frames.bin, or another pile."""
    change(package, f"{name}.bin", item * 5)
    change(package, f"{name}.npy", write_array(np.arange(6, dtype=np.uint64) * len(item)))


def jpeg(width: int, height: int, **how: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 60)).save(out, "JPEG", **how)
    return out.getvalue()


def claiming(data: bytes, width: int, height: int) -> bytes:
    """A JPEG whose header says another size."""
    changed = bytearray(data)
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    changed[at + 5 : at + 9] = struct.pack(">2H", height, width)
    return bytes(changed)


def of_many_scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG that goes over its picture again and again."""
    data = jpeg(width, height, progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + b"\xff\xd9"


def png_claiming(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (160, 192)).save(out, "PNG")
    raw = bytearray(out.getvalue())
    raw[16:24] = struct.pack(">2L", width, height)
    raw[29:33] = struct.pack(">L", zlib.crc32(raw[12:29]))
    return bytes(raw)


def segments(*rows: list[int]) -> bytes:
    return write_array(np.array([rows[k % len(rows)] for k in range(5)], np.uint32))


def truncated_everywhere(package: Path) -> None:
    """Each picture ends within a segment, and the indexes agree."""
    with AvatarPackage.open(package) as opened:
        pile(package, "pictures", bytes(opened.frame_jpeg(0))[:-40])


def sized(width: int, height: int, picture: bytes) -> Callable[[Path], None]:
    """A manifest and pictures of a size."""

    def spoil(package: Path) -> None:
        pile(package, "pictures", picture)
        edit(package, frame_width=width, frame_height=height)

    return spoil


def manifest(how: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda package: replace(
        package / "manifest.json", how((package / "manifest.json").read_bytes())
    )


def with_members(count: int) -> Callable[[bytes], bytes]:
    def more(data: bytes) -> bytes:
        fields = msgspec.json.decode(data)
        entry = {"size": 0, "sha256": "0" * 64}
        fields["files"] |= {f"{k:x}": entry for k in range(count)}
        return bytes(msgspec.json.encode(fields))

    return more


def first(what: bytes, instead: bytes) -> Callable[[bytes], bytes]:
    def change_it(data: bytes) -> bytes:
        assert what in data
        return data.replace(what, instead, 1)

    return change_it


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    # What is no file
    "a pipe as manifest": (swap("manifest.json", os.mkfifo), "manifest.json"),
    "a pipe as member": (swap("frames.bin", os.mkfifo), "frames.bin is missing"),
    "a socket as member": (swap("rects.npy", make_socket), "rects.npy is missing"),
    "a folder as member": (swap("frames.npy", Path.mkdir), "frames.npy is missing"),
    "a device as network": (
        swap("models/image.onnx", lambda p: p.symlink_to("/dev/zero")),
        "models/image.onnx is missing",
    ),
    "a device as manifest": (
        swap("manifest.json", lambda p: p.symlink_to("/dev/zero")),
        "manifest.json",
    ),
    "the process itself": (
        swap("frames.bin", lambda p: p.symlink_to("/proc/self/environ")),
        "leads out",
    ),
    "a link to itself": (swap("frames.bin", lambda p: p.symlink_to(p.name)), "is missing"),
    # What is larger than it can be
    "frames of 10 GB": (swap("frames.bin", sparse(10 * GIB)), "bytes, expected"),
    "segments of 10 GB": (swap("segments.npy", sparse(10 * GIB)), "bytes, expected"),
    "a network of 10 GB": (swap("models/image.onnx", sparse(10 * GIB)), "bytes, expected"),
    "a network of 10 GB that is listed": (
        lambda package: (
            swap("models/audio_encoder.onnx", sparse(10 * GIB))(package),
            with_size(package, "models/audio_encoder.onnx", 10 * GIB),
        ),
        "more than 512 MiB",
    ),
    "a manifest of 10 GB": (swap("manifest.json", sparse(10 * GIB)), "more than 1 MiB"),
    # Pictures
    "a JPEG of 65,500 x 65,500": (
        lambda package: pile(package, "pictures", claiming(jpeg(160, 192), 65_500, 65_500)),
        "frame 0",
    ),
    "a PNG of 100,000 x 100,000": (
        lambda package: pile(package, "pictures", png_claiming(100_000, 100_000)),
        "frame 0",
    ),
    "frames of 13,000 x 13,000": (
        sized(13_000, 13_000, claiming(jpeg(160, 192), 13_000, 13_000)),
        "pixels together",
    ),
    "a JPEG of 20,000 scans": (
        lambda package: pile(package, "pictures", of_many_scans(160, 192, 20_000)),
        "scans",
    ),
    "pictures that end within a segment": (truncated_everywhere, "frame 0"),
    # Restart segments
    "segments that overlap": (
        lambda p: change(p, "segments.npy", segments([9, 700, 600])),
        "frame 0",
    ),
    "segments of no length": (
        lambda p: change(p, "segments.npy", segments([9, 9, 700])),
        "frame 0",
    ),
    "segments beyond their frame": (
        lambda p: change(p, "segments.npy", segments([9, 700], [9, 700], [9, 2**31])),
        "frame 2",
    ),
    "too many rows": (
        lambda p: change(p, "segments.npy", write_array(np.array([[9, 700]] * 6, np.uint32))),
        "expected 5 rows",
    ),
    # Manifests
    "100,000,000 bytes of members": (manifest(with_members(1_000_000)), "more than 1 MiB"),
    "8,000 members": (manifest(with_members(8_000)), "manifest cannot be read"),
    "a key twice": (manifest(first(b"{", b'{"name": "else", ')), "'name' is there twice"),
    "a member twice": (
        manifest(first(b'"files": {', b'"files": {"frames.bin": {"size": 1, "sha256": "0"}, ')),
        "manifest cannot be read",
    ),
    "a key twice, written otherwise": (
        manifest(first(b"{", rb'{"\u006eame": "else", ')),
        "'name' is there twice",
    ),
    "no number": (manifest(first(b'"frame_count": 5', b'"frame_count": NaN')), "cannot be read"),
    "an endless number": (manifest(first(b'"frame_count": 5', b'"frame_count": 1e999')), "cannot"),
    "an unknown field, deep": (
        manifest(first(b"{", b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b", ")),
        "cannot be read",
    ),
    "a terminal's commands": (lambda p: edit(p, licence="free\x1b[2J\x1b]0;x\x07"), "licence"),
    "a text that turns round": (lambda p: edit(p, consent="yes \u202eon"), "consent"),
    "half a character": (
        manifest(first(b'"licence": "', rb'"licence": "\ud800')),
        "cannot be read",
    ),
    "a line break in a name": (lambda p: edit(p, name="a\nb"), "name"),
    "a name that turns round": (lambda p: edit(p, name="a\u202eb"), "name"),
    "a name of 4,096 characters": (lambda p: edit(p, name="a" * 4096), "name"),
    "a name that leads out": (lambda p: edit(p, name="../a"), "name"),
    "a member with a line break": (lambda p: change(p, "a\nb", b"x"), "plain name"),
    "a member with a terminal's command": (lambda p: change(p, "a\x1b[2J", b"x"), "plain name"),
}


def with_size(package: Path, name: str, size: int) -> None:
    files = msgspec.json.decode((package / "manifest.json").read_bytes())["files"]
    files[name]["size"] = size
    edit(package, files=files)


def test_hostile_packages_are_refused(tiny_avatar: Path, tmp_path: Path) -> None:
    """Served and listed, by one process with little memory to spare."""
    folder = tmp_path / "packages"
    jobs, words = [], []
    for number, (spoil, word) in enumerate(HOSTILE.values()):
        package = linked(tiny_avatar, folder / str(number) / "bad")
        spoil(package)
        jobs.append(("served", package))
        words.append(word)
    for outcome, word in zip(taken_in(("served", tiny_avatar), jobs, folder), words, strict=True):
        refused(outcome, word)


def test_a_listing_survives_them_all(tiny_avatar: Path, tmp_path: Path) -> None:
    """One folder full of them: what can be used is there, the rest is listed with its reason."""
    folder = tmp_path / "packages"
    for number, (spoil, _) in enumerate(HOSTILE.values()):
        spoil(linked(tiny_avatar, folder / f"bad-{number}"))
    linked(tiny_avatar, folder / "good")
    jobs = [("listed", folder / "good")]
    (outcome,) = taken_in(("listed", folder / "good"), jobs, folder)
    assert not outcome.kind, outcome
    listed = {i.name: i for i in AvatarLibrary([folder]).list() if i.path.parent == folder}
    assert listed["good"].error is None
    # Pictures and networks are looked at when they are needed.
    later = {"scans", "frame 0", "more than 512 MiB"}
    for number, (_, word) in enumerate(HOSTILE.values()):
        if word not in later and f"bad-{number}" in listed:
            assert listed[f"bad-{number}"].error, word


def test_names_of_folders_that_a_terminal_would_obey(tiny_avatar: Path, tmp_path: Path) -> None:
    """They are listed so that one sees what they are, and cannot be used."""
    names = ["a\nb", "a\x1b[2J", "a\u202eb", "a\udcffb"]
    for name in names:
        linked(tiny_avatar, tmp_path / name)
    for arguments in (["list"], ["list", "--json"], ["inspect", f"./{names[1]}"]):
        done = subprocess.run(
            [sys.executable, "-m", "lipsync_fast", "avatar", *arguments],
            capture_output=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"LIPSYNC_FAST_AVATARS": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        said = (done.stdout + done.stderr).decode()
        assert all(c.isprintable() or c == "\n" for c in said)
        assert not re.search(r"^b\b", said, re.MULTILINE), "a name goes on in a line of its own"
        assert arguments[0] == "inspect" or said.count("cannot be seen") == len(names)
    for name in names:
        with pytest.raises(AvatarError):
            AvatarLibrary([tmp_path]).find(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../..", "a\0b", "x" * 4096, "../" * 2000, "\udcff", "a\nb", "~", "*"]
)
def test_names_that_are_asked_for(tmp_path: Path, name: str) -> None:
    with pytest.raises(AvatarError) as caught:
        AvatarPackage.open(AvatarLibrary([tmp_path]).find(name))
    assert len(str(caught.value)) < 1000 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["a\nb", "a\x1bb", "a\x7fb", "x" * 201])
def test_names_in_a_zip(tiny_avatar: Path, tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.lsa", "w") as archive:
        for path in sorted(p for p in tiny_avatar.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(tiny_avatar))
        archive.writestr(name, b"x")
    with pytest.raises(AvatarFormatError, match="plain name"):
        AvatarPackage.open(tmp_path / "x.lsa")


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_a_package_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.lsa"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        make_socket(path)
    with pytest.raises(AvatarError, match="no such avatar package"):
        AvatarPackage.open(path)


def test_what_may_not_be_read(tiny_avatar: Path, tmp_path: Path) -> None:
    """Said with its reason, as somebody who is not root."""
    package = linked(tiny_avatar, tmp_path / "packages" / "bad")
    replace(package / "frames.npy", (package / "frames.npy").read_bytes())
    (package / "frames.npy").chmod(0)
    script = (
        "import os, sys\n"
        "from lipsync_fast.avatars.package import AvatarPackage\n"
        "from lipsync_fast.errors import AvatarFormatError\n"
        "if os.getuid() == 0: os.setgid(65534), os.setuid(65534)\n"
        "os.chdir(sys.argv[1])\n"
        "try: AvatarPackage.open('bad')\n"
        "except AvatarFormatError as error: print(error)\n"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            with contextlib.suppress(PermissionError):
                folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    done = subprocess.run(
        [sys.executable, "-c", script, str(package.parent)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "frames.npy: cannot be read" in done.stdout, done.stderr
    assert "Permission denied" in done.stdout


def test_limits_leave_room_for_what_is_real(tiny_avatar: Path) -> None:
    """8K pictures and a progressive JPEG of a camera pass."""
    with AvatarPackage.open(tiny_avatar) as package:
        made = msgspec.structs.replace(package.manifest, frame_width=8192, frame_height=4320)
    assert made.frame_width * made.frame_height < limits.FRAME_PIXELS
    assert jpeg(64, 64, progressive=True).count(b"\xff\xda") < limits.SCANS / 4
