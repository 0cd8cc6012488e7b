# SPDX-License-Identifier: Apache-2.0
"""Damaged and lying avatar packages: the right content or a clear error, in bounded memory."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import small_manifest

from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.package import MODELS, AvatarPackage
from lipsync_fast.avatars.storage import write_array
from lipsync_fast.avatars.writer import AvatarWriter, pack
from lipsync_fast.engine.backends import create_backend
from lipsync_fast.errors import AvatarError, AvatarFormatError, AvatarVersionError
from lipsync_fast.geometry import Rect

COUNT = 3
Damage = Callable[[Path], None]


def build(dest: Path) -> Path:
    """A small package with every kind of member but ``regions.npy``."""
    manifest = small_manifest((48, 32), licence="free for all to use " * 20)
    rng = np.random.default_rng(0)
    with AvatarWriter(dest, manifest, keep_regions=False) as writer:
        for _ in range(COUNT):
            picture = np.kron(rng.integers(0, 256, (4, 6, 3)), np.ones((8, 8, 1)))
            writer.add_frame(
                picture.astype(np.uint8), Rect(8, 4, 32, 26), rng.random((26, 32)) < 0.3
            )
        for name in MODELS:
            writer.add_model(name, name.encode() * 4)
        return writer.finish()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder form; copy it before changing it."""
    return build(tmp_path_factory.mktemp("small") / "small")


@pytest.fixture(scope="module")
def packed(small: Path) -> bytes:
    """The same package as the bytes of an .lsa file."""
    file = small.parent / "small.lsa"
    pack(small, file)
    return file.read_bytes()


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """The folder form, to be damaged."""
    return Path(shutil.copytree(small, tmp_path / "copy"))


Content = tuple[Manifest, list[object]]


def content(path: Path, verify: bool = True) -> Content:
    """Everything that a package says, asked for as the engine does."""
    with AvatarPackage.open(path) as package:
        if verify:
            package.verify()
        said: list[object] = [bytes(package.model(name)) for name in MODELS]
        for i in range(package.manifest.frame_count):
            mask = package.mask(i)
            said += [
                bytes(package.frame_jpeg(i)),
                package.frame_segments(i).tolist(),
                package.picture(i).tobytes(),
                package.rect(i),
                package.crop(i).tobytes(),
                None if mask is None else mask.tobytes(),
            ]
        return package.manifest, said


def change(folder: Path, name: str, data: bytes) -> None:
    """Replace a member and let the manifest agree, as somebody hostile would."""
    (folder / name).write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(folder, lambda m: m["files"].update({name: entry}))


def edit(folder: Path, how: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest."""
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    how(manifest)
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))


def refused(path: Path, *words: str, error: type[AvatarError] = AvatarFormatError) -> None:
    """Opening and reading fails with one line that names the path and has ``words``."""
    with pytest.raises(error) as caught:
        content(path)
    assert type(caught.value) is error
    message = str(caught.value)
    assert str(path) in message
    assert "0x" not in message, "no addresses of objects"
    assert len(message) < 600 + len(str(path))
    for word in words:
        assert word in message


# Bytes lost and bytes changed


def test_truncated_at_any_byte(packed: bytes, tmp_path: Path) -> None:
    file = tmp_path / "cut.lsa"
    ends = {*range(0, len(packed), 397), *range(len(packed) - 400, len(packed)), *range(100)}

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, len(packed) - 1))
    def anywhere(end: int) -> None:
        ends.add(end)

    anywhere()
    for end in sorted(ends):
        file.write_bytes(packed[:end])
        with pytest.raises(AvatarFormatError):
            AvatarPackage.open(file)


def places(packed: bytes) -> st.SearchStrategy[int]:
    """Offsets in an .lsa, more of them where its structure lies than in its pictures."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        directory = archive.start_dir
        headers = [i.header_offset for i in archive.infolist()]
        manifest = archive.getinfo("manifest.json").header_offset
    return st.one_of(
        st.integers(0, len(packed) - 1),
        st.integers(directory, len(packed) - 1),
        st.integers(len(packed) - 22, len(packed) - 1),
        st.sampled_from(headers).flatmap(lambda at: st.integers(at, at + 200)),
        st.integers(manifest, manifest + 2500),
    )


def test_any_byte_of_a_file_changed(packed: bytes, small: Path, tmp_path: Path) -> None:
    wanted = content(small)
    file = tmp_path / "changed.lsa"
    outcomes = {"same": 0, "refused": 0}

    @settings(max_examples=400, deadline=None)
    @given(places(packed), st.integers(1, 255))
    def flip(at: int, bits: int) -> None:
        changed = bytearray(packed)
        changed[at] ^= bits
        file.write_bytes(changed)
        try:
            found = content(file)
        except AvatarError:
            outcomes["refused"] += 1
        else:
            outcomes["same"] += 1
            assert found == wanted

    flip()
    assert min(outcomes.values()) > 20, outcomes


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@contextmanager
def exchanged(file: Path, data: bytes) -> Iterator[None]:
    """Other content for a while; as a new file, since the old one may still be mapped."""
    before = file.read_bytes()
    try:
        file.unlink()
        file.write_bytes(data)
        yield
    finally:
        file.unlink()
        file.write_bytes(before)


def test_any_byte_of_a_folder_changed(small: Path, copy: Path) -> None:
    """Checksums find every change; without them it may show, but never as a crash."""
    wanted = content(small)

    @settings(max_examples=300, deadline=None)
    @given(data=st.data(), bits=st.integers(1, 255), verify=st.booleans())
    def flip(data: st.DataObject, bits: int, verify: bool) -> None:
        name = data.draw(st.sampled_from(names(small)))
        raw = bytearray((small / name).read_bytes())
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= bits
        with exchanged(copy / name, bytes(raw)):
            try:
                manifest, said = content(copy, verify)
            except AvatarError:
                return
        if name == "manifest.json":  # nothing vouches for the manifest of a folder
            return
        assert not verify, f"a change of {name} passed as verified"
        assert manifest == wanted[0]
        assert len(said) == len(wanted[1])

    flip()


def test_any_member_of_a_folder_truncated(small: Path, copy: Path) -> None:
    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def cut(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(names(small)))
        raw = (small / name).read_bytes()
        end = data.draw(st.integers(0, len(raw) - 1))
        with (
            exchanged(copy / name, raw[:end]),
            pytest.raises(AvatarFormatError) as caught,
        ):
            AvatarPackage.open(copy)
        assert name in str(caught.value) or name == "manifest.json"

    cut()


def test_a_wrong_checksum_names_the_member(copy: Path) -> None:
    raw = bytearray((copy / "models" / "image.onnx").read_bytes())
    raw[3] ^= 1
    (copy / "models" / "image.onnx").write_bytes(raw)
    with (
        AvatarPackage.open(copy) as package,
        pytest.raises(AvatarFormatError, match=r"models/image\.onnx.*checksum"),
    ):
        package.verify()
    edit(copy, lambda m: m["files"]["models/image.onnx"].update(sha256="0" * 64))
    refused(copy, "models/image.onnx", "checksum")


@pytest.mark.parametrize("name", ["frames.bin", "rects.npy", "models/decoder.onnx"])
def test_a_member_without_a_checksum_is_refused(copy: Path, name: str) -> None:
    """Else it could be exchanged, and the package would still pass as verified."""
    edit(copy, lambda m: m["files"].pop(name))
    refused(copy, name)


@pytest.mark.parametrize("name", ["frames.bin", "frames.npy", "masks.bin", "models/image.onnx"])
def test_a_missing_member_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    refused(copy, name, "missing")


# The manifest


def test_a_newer_version_says_to_update(copy: Path) -> None:
    edit(copy, lambda m: m.update(format_version=2, family="unheard of", new_field=[1]))
    refused(copy, "newer", "update", error=AvatarVersionError)


def test_fields_of_a_later_minor_change_are_passed_over(copy: Path) -> None:
    edit(copy, lambda m: m.update(mood="cheerful"))
    content(copy)


@pytest.mark.parametrize(
    "fields",
    [
        {"format_version": 0},
        {"format_version": -1},
        {"format_version": "1"},
        {"format_version": 1.5},
        {"format": "lipsync-avatars"},
        {"format": None},
        {"frame_count": 0},
        {"frame_count": -3},
        {"frame_count": COUNT + 1},
        {"frame_count": COUNT - 1},
        {"frame_count": 1_000_000},
        {"frame_count": 1 << 62},
        {"frame_count": 10**40},
        {"frame_count": True},
        {"frame_width": 0},
        {"frame_width": -48},
        {"frame_width": 1 << 33},
        {"frame_width": 47},
        {"frame_height": 16_384},
        {"region": 225},
        {"region": 0},
        {"region": 2048},
        {"width": 0},
        {"width": 1 << 20},
        {"audio": {"before": 8, "after": 9}},
        {"audio": {"before": -8, "after": 24}},
        {"audio": None},
        {"fps": 30},
        {"loop": "never"},
        {"family": "wav2lip"},
        {"jpeg": {"restart_interval": 0}},
        {"name": "../small"},
        {"name": ""},
        {"licence": "x" * 20_001},
        {"files": []},
        {"files": {"frames.bin": {"size": -1, "sha256": "0" * 64}}},
        {"files": {"frames.bin": {"size": 1 << 70, "sha256": "0" * 64}}},
        {"files": {"frames.bin": {"size": 1, "sha256": "short"}}},
        {"files": {"../../etc/passwd": {"size": 1, "sha256": "0" * 64}}},
        {"files": {"/etc/passwd": {"size": 1, "sha256": "0" * 64}}},
        {"files": {"..\\x": {"size": 1, "sha256": "0" * 64}}},
        {"files": {"a\0b": {"size": 1, "sha256": "0" * 64}}},
        {"files": {"x" * 5_000: {"size": 1, "sha256": "0" * 64}}},
        {"files": {"models": {"size": 1, "sha256": "0" * 64}}},
    ],
    ids=lambda fields: "-".join(f"{k}-{v}"[:40] for k, v in fields.items()),
)
def test_a_manifest_that_cannot_be(copy: Path, fields: dict[str, object]) -> None:
    edit(copy, lambda m: m.update(fields))
    refused(copy)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0" * 100,
        b"\xff\xfe{}",
        b"{",
        b"{}",
        b"null",
        b"[]",
        b'"lipsync-avatar"',
        b'{"format": "lipsync-avatar"}',
        b'{"name": "package.json", "version": "1.0"}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"format": "lipsync-avatar", "format_version": 1' + b"0" * 5_000 + b"}",
        b'{"format": "lipsync-avatar"}' + b" " * (1 << 20),
    ],
    ids=lambda text: f"{text[:24]!r}-{len(text)}",
)
@pytest.mark.parametrize("ending", ["", ".lsa"])
def test_another_manifest(tmp_path: Path, text: bytes, ending: str) -> None:
    path = tmp_path / f"other{ending}"
    if ending:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("manifest.json", text)
    else:
        path.mkdir()
        (path / "manifest.json").write_bytes(text)
    refused(path)


# Not a package


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        bytes(np.random.default_rng(0).integers(0, 256, 5_000, np.uint8)),
        b"PK\x05\x06" + bytes(18),
        b"PK\x05\x06" + b"\xff" * 18,
        b"PK\x05\x06" * 100,
    ],
    ids=["empty", "text", "noise", "empty-zip", "lying-zip", "ends"],
)
def test_not_a_package(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.lsa").write_bytes(data)
    refused(tmp_path / "x.lsa")


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    refused(tmp_path, "manifest.json")


def test_a_manifest_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    refused(tmp_path, "manifest.json")


# Zip files


def zipped(file: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def members(small: Path) -> dict[str, bytes]:
    return {name: (small / name).read_bytes() for name in names(small)}


def test_a_zip_of_another_tool_will_do(small: Path, tmp_path: Path) -> None:
    """Stored members in any place, and entries for folders."""
    file = zipped(tmp_path / "x.lsa", {"models/": b"", **members(small)})
    assert content(file) == content(small)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members(small: Path, tmp_path: Path, method: int) -> None:
    refused(zipped(tmp_path / "x.lsa", members(small), method), "compressed", "stored")


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/x", "//x", "a\\b", "..\\x", "C:x", "a//b", "./a", "é", "x" * 300],
)
def test_member_names_that_lead_elsewhere(small: Path, tmp_path: Path, name: str) -> None:
    refused(zipped(tmp_path / "x.lsa", {**members(small), name: b"x"}), "plain name")


def test_a_name_twice(small: Path, tmp_path: Path) -> None:
    file = zipped(tmp_path / "x.lsa", {**members(small), "rectz.npy": b"x"})
    file.write_bytes(file.read_bytes().replace(b"rectz.npy", b"rects.npy"))
    refused(file, "rects.npy")


def test_too_many_members(small: Path, tmp_path: Path) -> None:
    more = {f"more/{i}": b"" for i in range(1_001)}
    refused(zipped(tmp_path / "x.lsa", {**members(small), **more}), "1000")


# Links


def test_links_that_lead_out_of_the_folder(copy: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    shutil.move(copy / "frames.bin", secret)
    (copy / "frames.bin").symlink_to(secret)
    refused(copy, "frames.bin", "link")


def test_a_folder_of_members_that_leads_out(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "models", tmp_path / "models")
    (copy / "models").symlink_to(tmp_path / "models")
    refused(copy, "models/", "link")


def test_a_manifest_that_leads_out(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "manifest.json", tmp_path / "m")
    (copy / "manifest.json").symlink_to("../m")
    refused(copy, "manifest.json", "link")


@pytest.mark.parametrize("target", ["nowhere", "frames.bin", "/proc/self/mem", "/dev/zero"])
def test_links_to_nothing_that_can_be_read(copy: Path, target: str) -> None:
    (copy / "frames.bin").unlink()
    (copy / "frames.bin").symlink_to(target)
    refused(copy, "frames.bin")


def test_links_that_stay_inside_and_a_link_to_the_package(
    copy: Path, small: Path, tmp_path: Path
) -> None:
    (copy / "frames.bin").rename(copy / "kept")
    (copy / "frames.bin").symlink_to("kept")
    (tmp_path / "alias").symlink_to(copy)
    assert content(tmp_path / "alias") == content(small)


# Arrays


def npy(header: str | bytes, data: bytes = b"", version: int = 1) -> bytes:
    """An array file with any header."""
    text = header if isinstance(header, bytes) else header.encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + data[:0] + text + data
    )


def head(shape: object, kind: object = "<u8", fortran: object = False) -> str:
    return repr({"descr": kind, "fortran_order": fortran, "shape": shape})


def offsets(values: list[int]) -> bytes:
    return write_array(np.array(values, np.uint64))


FOUR = bytes(8 * (COUNT + 1))
LYING_INDEXES = {
    "empty": b"",
    "magic only": b"\x93NUMPY",
    "header past the end": b"\x93NUMPY\x01\x00\xff\xff{}",
    "2^40 frames": npy(head((1 << 40,)), FOUR),
    "2^63 frames": npy(head((1 << 63,)), FOUR),
    "a product of 2^160": npy(head((1 << 40,) * 4), FOUR),
    "nothing times 2^120": npy(head((0, 1 << 40, 1 << 40, 1 << 40))),
    "nothing at all": npy(head((0,))),
    "no dimensions": npy(head(()), FOUR[:8]),
    "40 dimensions": npy(head((1,) * 40 + (4,)), FOUR),
    "negative": npy(head((-4,)), FOUR),
    "minus one": npy(head((-1,)), FOUR),
    "a list": npy(head([4]), FOUR),
    "a bool": npy(head((True, 4)), FOUR),
    "a float": npy(head((4.0,)), FOUR),
    "one too few": npy(head((3,)), FOUR[8:]),
    "two dimensions": npy(head((4, 1)), FOUR),
    "more data than said": npy(head((4,)), FOUR + b"x"),
    "floats": npy(head((4,), "<f8"), FOUR),
    "big-endian": npy(head((4,), ">u8"), FOUR),
    "int64": npy(head((4,), "<i8"), FOUR),
    "uint32": npy(head((4,), "<u4"), FOUR[:16]),
    "structured": npy(head((4,), [("a", "<u8")]), FOUR),
    "Fortran order": npy(head((4,), fortran=True), FOUR),
    "no order": npy(head((4,), fortran=None), FOUR),
    "no shape": npy("{'descr': '<u8', 'fortran_order': False}", FOUR),
    "a set": npy("{'descr', 'shape'}", FOUR),
    "code": npy("__import__('os').abort()", FOUR),
    "deep": npy("(" * 900, FOUR),
    "deep and closed": npy("(" * 400 + ")" * 400, FOUR),
    "minuses": npy("-" * 900 + "1", FOUR),
    "digits": npy("9" * 900, FOUR),
    "no ASCII": npy("{'é': 1}".encode(), FOUR),
    "zeros": npy(b"\0" * 100, FOUR),
    "version 2": npy(head((4,)), FOUR, version=2),
    "not beginning at 0": offsets([1, 2, 3, 4]),
    "past the end": offsets([0, 1, 2, 1 << 40]),
    "the last at 2^64 - 1": offsets([0, 1, 2, (1 << 64) - 1]),
    "one at 2^64 - 1": offsets([0, (1 << 64) - 1, 2, 3]),
    "decreasing": offsets([0, 9, 5, 10]),
    "before the end": offsets([0, 1, 2, 3]),
}


@pytest.mark.parametrize("case", LYING_INDEXES)
@pytest.mark.parametrize("name", ["frames.npy", "masks.npy", "pictures.npy"])
def test_indexes_that_lie(copy: Path, name: str, case: str) -> None:
    change(copy, name, LYING_INDEXES[case])
    refused(copy)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("rects.npy", np.array([[8, 4, 49, 30]] * COUNT, np.int32)),
        ("rects.npy", np.array([[8, 4, 40, 33]] * COUNT, np.int32)),
        ("rects.npy", np.array([[-1, 4, 40, 30]] * COUNT, np.int32)),
        ("rects.npy", np.array([[8, 4, 8, 30]] * COUNT, np.int32)),
        ("rects.npy", np.array([[8, 30, 40, 4]] * COUNT, np.int32)),
        ("rects.npy", np.array([[8, 4, 40, 30]] * (COUNT - 1), np.int32)),
        ("rects.npy", np.array([[8, 4, 40, 30, 1]] * COUNT, np.int32)),
        ("rects.npy", np.array([[8, 4, 40, 30]] * COUNT, np.uint32)),
        ("rects.npy", np.zeros((COUNT, 0), np.int32)),
        ("segments.npy", np.zeros((COUNT, 0), np.uint32)),
        ("segments.npy", np.zeros((COUNT, 1), np.uint32)),
        ("segments.npy", np.array([[9, 8]] * COUNT, np.uint32)),
        ("segments.npy", np.array([[0, (1 << 32) - 1]] * COUNT, np.uint32)),
        ("segments.npy", np.zeros((COUNT, 3), np.uint8)),
        ("regions.npy", np.zeros((COUNT, 232, 231, 3), np.uint8)),
        ("regions.npy", np.zeros((COUNT - 1, 232, 232, 3), np.uint8)),
        ("regions.npy", np.zeros((COUNT, 232, 232, 3), np.bool_)),
    ],
)
def test_arrays_that_do_not_fit(copy: Path, name: str, array: np.ndarray[Any, Any]) -> None:
    change(copy, name, write_array(array))
    refused(copy)


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["frames.npy", "rects.npy", "segments.npy", "masks.npy"])
def test_objects_are_never_unpickled(copy: Path, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "intruder"
    payload = pickle.dumps([Intruder(mark)] * 4)
    for data in (npy(head((4,), "|O"), payload), payload):
        change(copy, name, data)
        refused(copy)
    assert not mark.exists()
    pickle.loads(payload)[0].close()
    assert mark.exists(), "the payload would have worked"


# Pictures and masks


def pile(copy: Path, name: str, items: list[bytes]) -> None:
    change(copy, f"{name}.bin", b"".join(items))
    ends = np.cumsum([0, *map(len, items)])
    change(copy, f"{name}.npy", offsets(ends.tolist()))


def picture(form: str, width: int = 48, height: int = 32) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (9, 99, 199)).save(out, form)
    return out.getvalue()


def png_of_claimed_size(width: int, height: int) -> bytes:
    raw = bytearray(picture("PNG"))
    raw[16:24] = struct.pack(">2L", width, height)
    raw[29:33] = struct.pack(">L", zlib.crc32(raw[12:29]))
    return bytes(raw)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        b"hello" * 40,
        picture("JPEG")[:-200],
        picture("PNG")[:60],
        picture("JPEG", 32, 48),
        picture("PNG", 49, 32),
        picture("GIF"),
        picture("BMP"),
        picture("TIFF"),
        png_of_claimed_size(60_000, 60_000),
        png_of_claimed_size(1 << 31, 1),
        png_of_claimed_size(0, 32),
    ],
    ids=lambda data: f"{data[:6]!r}-{len(data)}",
)
def test_pictures_that_are_none(copy: Path, data: bytes) -> None:
    pile(copy, "pictures", [picture("PNG"), data, picture("PNG")])
    refused(copy, "frame 1")


@settings(max_examples=300, deadline=None)
@given(
    form=st.sampled_from(["JPEG", "PNG"]),
    cut=st.integers(0, 3_000),
    flips=st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 255)), max_size=8),
)
def test_damaged_pictures_are_pictures_or_refused(
    form: str, cut: int, flips: list[tuple[int, int]]
) -> None:
    from lipsync_fast.avatars.jpeg import decode, segment_offsets

    raw = bytearray(picture(form))
    for at, bits in flips:
        raw[at % len(raw)] ^= bits
    data = bytes(raw[: len(raw) - cut % len(raw)] if cut % 3 == 0 else raw)
    with suppress(AvatarFormatError):
        assert decode(data, (48, 32), "frame").shape == (32, 48, 3)
    try:
        cuts = segment_offsets(data)
    except AvatarFormatError:
        return
    assert (np.diff(cuts.astype(int)) >= 0).all()
    assert cuts[-1] <= len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        zlib.compress(b""),
        zlib.compress(bytes(103)),
        zlib.compress(bytes(105)),
        zlib.compress(bytes(104))[:-1],
        zlib.compress(bytes(104))[:-4] + b"evil",
        bytes(104),
    ],
)
def test_masks_of_a_wrong_size(copy: Path, data: bytes) -> None:
    good = zlib.compress(bytes(104))
    pile(copy, "masks", [good, good, good])
    content(copy)
    pile(copy, "masks", [good, data, good])
    refused(copy, "mask 1")


# Memory

OPEN_EACH = """
import os, resource, sys
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import AvatarFormatError

def read(path):
    with AvatarPackage.open(path) as package:
        for i in range(min(3, package.manifest.frame_count)):
            package.frame_segments(i), package.picture(i), package.crop(i), package.mask(i)

good, *lying = sys.argv[1:]
read(good)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (96 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in lying:
    try:
        read(path)
    except AvatarFormatError as error:
        print("refused", os.path.basename(path))
print("grown", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def huge_directory(small: Path, file: Path) -> None:
    """A zip whose directory has 400,000 entries (a list of them would take 200 MB)."""
    zipped(file, members(small))
    raw = file.read_bytes()
    end = raw.rindex(b"PK\x05\x06")
    start = struct.unpack_from("<L", raw, end + 16)[0]
    first = raw[start : raw.index(b"PK\x01\x02", start + 4)]
    with file.open("wb") as out:
        out.write(raw[:start])
        out.write(first * 400_000)
        size = len(first) * 400_000
        out.write(b"PK\x06\x06" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, 9, 9, size, start))
        out.write(b"PK\x06\x07" + struct.pack("<LQL", 0, start + size, 1))
        out.write(b"PK\x05\x06" + struct.pack("<4H2LH", 0, 0, 9, 9, 0xFFFFFFFF, 0xFFFFFFFF, 0))


def lying_packages(small: Path, folder: Path) -> Iterator[Path]:
    """Packages that would take gigabytes if their word were taken."""

    def new(name: str) -> Path:
        return Path(shutil.copytree(small, folder / name))

    for case in ("2^40 frames", "a product of 2^160", "past the end", "the last at 2^64 - 1"):
        path = new(case.replace(" ", "-"))
        change(path, "frames.npy", LYING_INDEXES[case])
        yield path
    path = new("million-frames")
    edit(path, lambda m: m.update(frame_count=1_000_000))
    yield path
    path = new("huge-regions")
    change(path, "regions.npy", npy(head((COUNT, 232, 232, 3), "|u1"), b"x"))
    yield path
    bomb = zlib.compress(bytes(1 << 29), 9)
    path = new("mask-bomb")
    pile(path, "masks", [bomb] * COUNT)
    yield path
    path = new("picture-bomb")
    edit(path, lambda m: m.update(frame_width=13_000, frame_height=13_000))
    pile(path, "pictures", [png_of_claimed_size(13_001, 13_000)] * COUNT)
    yield path
    path = new("manifest-of-200-MB")
    with (path / "manifest.json").open("wb") as file:
        file.truncate(200 << 20)
    yield path
    path = new("deep-manifest")
    (path / "manifest.json").write_bytes(b"[" * (1 << 20))
    yield path
    yield zipped(folder / "zip-bomb.lsa", {"manifest.json": bytes(1 << 28)}, zipfile.ZIP_DEFLATED)
    huge_directory(small, folder / "directory.lsa")
    yield folder / "directory.lsa"


def test_lying_packages_take_no_memory(small: Path, tmp_path: Path) -> None:
    """One process with 96 MiB to spare opens them all."""
    paths = list(lying_packages(small, tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", OPEN_EACH, str(small), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *lines, grown = done.stdout.splitlines()
    assert lines == [f"refused {path.name}" for path in paths]
    assert int(grown.split()[1]) < 48 << 10, "KiB"


# Networks


def test_networks_that_are_none(copy: Path) -> None:
    backend = create_backend("cpu", 1)
    for data in (b"", b"garbage" * 9):
        change(copy, "models/audio_encoder.onnx", data)
        with (
            AvatarPackage.open(copy) as package,
            pytest.raises(AvatarFormatError, match=r"audio_encoder\.onnx"),
        ):
            backend.load(package)
    backend.close()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"region": 256}, "image.onnx"),
        ({"width": 4}, "image.onnx"),
        ({}, "decoder.onnx"),
    ],
)
def test_networks_that_do_not_fit_the_manifest(
    tiny_avatar: Path, tmp_path: Path, fields: dict[str, int], words: str
) -> None:
    path = Path(shutil.copytree(tiny_avatar, tmp_path / "copy"))
    (path / "regions.npy").unlink()
    edit(path, lambda m: (m.update(fields), m["files"].pop("regions.npy")))
    if not fields:
        change(path, "models/decoder.onnx", (path / "models" / "image.onnx").read_bytes())
    backend = create_backend("cpu", 1)
    with AvatarPackage.open(path) as package:
        with pytest.raises(AvatarFormatError, match="does not fit the manifest") as caught:
            backend.load(package)
        assert words in str(caught.value)
    backend.close()
