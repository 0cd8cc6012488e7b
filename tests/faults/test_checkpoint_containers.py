# SPDX-License-Identifier: Apache-2.0
"""A checkpoint is one of torch's two containers from its first byte to its last, and no other."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the extra train is not installed")

from lipsync_fast.errors import CheckpointError, UnsafePickleError  # noqa: E402
from lipsync_fast.models.checkpoints import load_state  # noqa: E402
from lipsync_fast.untrusted.pickles import check_checkpoint  # noqa: E402

STATE = {"a": torch.arange(16.0), "b": torch.zeros(2, 3), "c": torch.ones(4, dtype=torch.int64)}


def saved(path: Path, *, legacy: bool, value: Any = STATE) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UnsafePickleError) as caught:
        check_checkpoint(path)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    for word in words:
        assert word in said, said
    with pytest.raises(CheckpointError, match="refused as a checkpoint"):
        load_state(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_both_forms_are_read(tmp_path: Path, legacy: bool) -> None:
    shared = torch.arange(100.0)
    values: list[Any] = [
        STATE,
        {"x": shared[10:20], "y": shared, "z": shared.half(), "w": shared > 3},
        {"state_dict": STATE, "step": 7, "lr": 0.1, "names": ["a", "b"], "empty": ()},
        {},
    ]
    for value in values:
        check_checkpoint(saved(tmp_path / "9.pth", legacy=legacy, value=value))


# ---------------------------------------------------------------- tar


def tar_of(path: Path, first: str) -> Path:
    """A tar as torch's oldest releases wrote it, whose first member's name may be pickles."""
    members = [
        (first, b""),
        ("storages", b"\x80\x02K\x00."),
        ("tensors", b"\x80\x02K\x00."),
        ("pickle", b"cos\nmkdir\n(S'intruder'\ntR."),
    ]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_a_tar_whose_first_name_reads_as_pickles(tmp_path: Path) -> None:
    refused(tar_of(tmp_path / "9.pth", "N.N.N.N.N."), "tar archive")
    refused(tar_of(tmp_path / "9.pth", "sys_info"), "tar archive")


def test_a_tar_that_begins_as_torchs_older_form(tmp_path: Path) -> None:
    """Its name is the magic number and the protocol; torch tries the tar first."""
    data = bytearray(tar_of(tmp_path / "9.pth", "sys_info").read_bytes())
    magic = saved(tmp_path / "old.pth", legacy=True).read_bytes()[:21]
    data[:21] = magic
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "9.pth").write_bytes(data)
    assert tarfile.is_tarfile(tmp_path / "9.pth")
    refused(tmp_path / "9.pth", "tar archive as well")


# ---------------------------------------------------------------- the older form


def test_bytes_behind_the_older_form(tmp_path: Path) -> None:
    path = saved(tmp_path / "9.pth", legacy=True)
    whole = path.read_bytes()
    path.write_bytes(whole + b"more")
    refused(path, "4 bytes follow its end")
    path.write_bytes(whole[:-5])
    refused(path, "cut off", "5 bytes are missing")


def test_the_older_form_needs_its_magic_number(tmp_path: Path) -> None:
    whole = saved(tmp_path / "9.pth", legacy=True).read_bytes()
    for other in (b"N.", pickle.dumps(1, 2), pickle.dumps([1], 2)):
        (tmp_path / "9.pth").write_bytes(other * 2 + whole[21:])
        refused(tmp_path / "9.pth")


def test_numbers_of_another_count_than_their_tensors_say(tmp_path: Path) -> None:
    path = saved(tmp_path / "9.pth", legacy=True, value={"a": torch.arange(16.0)})
    whole = path.read_bytes()
    at = len(whole) - 64 - 8
    assert struct.unpack_from("<q", whole, at) == (16,)
    path.write_bytes(whole[:at] + struct.pack("<q", 1 << 40) + whole[at + 8 :])
    refused(path, "other sizes")


# ---------------------------------------------------------------- the zip


def changed(path: Path, change: Callable[[list[tuple[str, bytes]]], None]) -> Path:
    """A zip of torch's with other members."""
    with zipfile.ZipFile(saved(path, legacy=False)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def test_the_same_members_written_anew_are_read(tmp_path: Path) -> None:
    check_checkpoint(changed(tmp_path / "9.pth", lambda members: None))


@pytest.mark.parametrize(
    "name",
    [
        "9/DATA.PKL",  # torch finds names in either case, and may take this one
        "9/data.pkl.txt",
        "other/data.pkl",
        "9/code/__torch__.py",
        "9/data/x",
        "9/.data/other",
        "9\\data.pkl",
        "loose",
        "9/data/",
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_members_that_torch_does_not_write(tmp_path: Path, name: str, first: bool) -> None:
    def add(members: list[tuple[str, bytes]]) -> None:
        members.insert(0 if first else len(members), (name, b"\x80\x02N."))

    refused(changed(tmp_path / "9.pth", add), "which no checkpoint of torch's has")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path: Path) -> None:
    refused(changed(tmp_path / "9.pth", lambda m: m.append(m[0])), "two members of one name")


def test_bytes_around_a_zip(tmp_path: Path) -> None:
    path = saved(tmp_path / "9.pth", legacy=False)
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")
    refused(path)
    path.write_bytes(whole + whole)
    refused(path)
    comment = whole[:-2] + struct.pack("<H", len(whole)) + whole  # whole zips behind the directory
    path.write_bytes(comment)
    refused(path)
    path.write_bytes(b"PK\x03\x04" + bytes(60) + whole)
    refused(path)


def test_a_directory_that_two_readers_find_in_two_places(tmp_path: Path) -> None:
    path = changed(tmp_path / "9.pth", lambda members: None)
    whole = bytearray(path.read_bytes())
    entries = struct.unpack_from("<H", whole, len(whole) - 12)[0]
    struct.pack_into("<H", whole, len(whole) - 12, entries - 1)
    path.write_bytes(whole)
    refused(path, "contradicts itself")


def test_what_follows_the_list_of_tensors(tmp_path: Path) -> None:
    def longer(members: list[tuple[str, bytes]]) -> None:
        at = next(i for i, (name, _) in enumerate(members) if name.endswith("data.pkl"))
        members[at] = members[at][0], members[at][1] + b"cos\nsystem\n."

    refused(changed(tmp_path / "9.pth", longer), "goes on behind its end")


def test_tensors_larger_than_their_numbers(tmp_path: Path) -> None:
    def shorter(members: list[tuple[str, bytes]]) -> None:
        at = next(i for i, (name, _) in enumerate(members) if name.endswith("data/0"))
        members[at] = members[at][0], members[at][1][:-4]

    refused(changed(tmp_path / "9.pth", shorter), "need more numbers")
    gone = changed(tmp_path / "9.pth", lambda m: m.remove(next(x for x in m if "data/1" in x[0])))
    refused(gone, "need more numbers")


# ---------------------------------------------------------------- look-alikes

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:"
    + b"4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    + b"\nsize 435807851\n"
)


def zip_of(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"some bytes")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["an empty file (0 bytes)"]),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title>", ["a web page (HTML)"]),
        (b"\n  <!-- x -->\n<HTML><body>", ["a web page (HTML)"]),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code>", ["an XML document"]),
        (b'{"error": "Invalid username or password."}', ["JSON", "Invalid username"]),
        (b"Entry not found", ["a text: Entry not found"]),
        (POINTER, ["a Git LFS pointer", "git lfs pull"]),
        (b"/annex/objects/MD5E-s4--abc.pth\n", ["a Git annex pointer"]),
        (zip_of("word/document.xml", "[Content_Types].xml"), ["an Office document"]),
        (zip_of("config.json", "model.weights.h5"), ["a Keras model"]),
        (zip_of("a.npy", "b.npy"), ["NumPy arrays"]),
        (zip_of("photos/1.jpg", "photos/2.jpg"), ["a zip archive of photos/1.jpg"]),
        (zip_of("wav2lip/wav2lip.pth"), ["a zip archive of wav2lip/wav2lip.pth"]),
        (zip_of("manifest.json", "frames.bin"), ["an avatar package"]),
        (zip_of("a.txt", "b.txt")[:-30], ["a zip archive that is cut off or damaged"]),
        ((40).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}' + bytes(40), ["safetensors"]),
        (b"\x08\x08\x12\x07pytorch\x1a\x05" + bytes(99), ["an ONNX network"]),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), ["an HDF5 file", "Keras"]),
        (b"GGUF\x03\0\0\0" + bytes(99), ["a GGUF file"]),
        (b"\x1c\0\0\0TFL3" + bytes(99), ["a TensorFlow Lite network"]),
        (b"\x1f\x8b\x08" + bytes(99), ["a gzip archive"]),
        (b"\0\0\0\x20ftypisom" + bytes(99), ["a video or recording (MP4)"]),
        (bytes(9999), ["nothing but zeros"]),
        (pickle.dumps({"a": 1}, 4), ["a Python pickle"]),
        (bytes(range(256)) * 9, ["damaged, or no checkpoint at all"]),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) else "",
)
def test_what_bears_a_checkpoints_name(tmp_path: Path, data: bytes, words: list[str]) -> None:
    (tmp_path / "wav2lip.pth").write_bytes(data)
    refused(tmp_path / "wav2lip.pth", *words)


def test_a_checkpoint_that_is_cut_off(tmp_path: Path) -> None:
    path = saved(tmp_path / "9.pth", legacy=False)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "a checkpoint that is cut off or damaged")
