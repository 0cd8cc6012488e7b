# SPDX-License-Identifier: Apache-2.0
"""Pickled face boxes from strangers: lists of whole numbers are read, all else is refused."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_fast.avatars.importing.coords import read_coords
from lipsync_fast.errors import AvatarImportError

BOXES = [(20, 148, 30, 137), (22, 151, 33, 140)]
WANTED = [[30, 20, 137, 148], [33, 22, 140, 151]]


def read(folder: Path, data: bytes) -> Any:
    file = folder / "coords.pkl"
    file.write_bytes(data)
    return read_coords(file, folder.resolve())


def refused(folder: Path, data: bytes, *words: str) -> None:
    """By one line, at once."""
    begun = time.process_time()
    with pytest.raises(AvatarImportError) as caught:
        read(folder, data)
    assert time.process_time() - begun < 5
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    assert said.startswith(f"{folder / 'coords.pkl'}: ")
    assert len(said) < 400 + len(str(folder))
    assert all(c.isprintable() for c in said)
    for word in words:
        assert word in said, said


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_boxes_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    kinds: list[Any] = [
        BOXES,
        [list(box) for box in BOXES],
        [tuple(np.array(box)) for box in BOXES],
        [tuple(np.array(box, np.int32)) for box in BOXES],
        [tuple(np.array(box, np.uint16)) for box in BOXES],
    ]
    for boxes in kinds:
        assert read(tmp_path, pickle.dumps(boxes, protocol)).tolist() == WANTED
    for kind in (np.int8, np.int16, np.dtype(">i4").type):
        negative = [tuple(kind(v) for v in (-5, 100, -7, 90))]
        assert read(tmp_path, pickle.dumps(negative, protocol)).tolist() == [[-7, -5, 90, 100]]


def test_the_old_and_the_new_name_of_numpy_s_scalars(tmp_path: Path) -> None:
    data = pickle.dumps([tuple(np.array(box)) for box in BOXES], 2)
    for name in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        other = data.replace(b"numpy._core.multiarray", name).replace(
            b"numpy.core.multiarray", name
        )
        assert read(tmp_path, other).tolist() == WANTED


def test_as_many_as_an_avatar_may_have(tmp_path: Path) -> None:
    boxes = [tuple(np.array(BOXES[k % 2])) for k in range(15_000)]
    begun = time.process_time()
    assert len(read(tmp_path, pickle.dumps(boxes, 4))) == 15_000
    assert time.process_time() - begun < 20
    refused(tmp_path, pickle.dumps([*BOXES] * 8_000, 4), "16000 rectangles, expected 1 to 15000")
    refused(tmp_path, pickle.dumps([], 4), "0 rectangles")


class Intruder:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_runs(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "intruder"
    data = pickle.dumps([*BOXES, Intruder(mark)], protocol)
    refused(tmp_path, data, "mkdir", "nothing of it has run")
    assert not mark.exists()
    pickle.loads(data)
    assert mark.is_dir(), "the payload would have worked"


def global_of(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def memo_bomb() -> bytes:
    """Lists of the list before, ten times each: 10^40 entries for who goes through them."""
    closed = b"".join((b"h%c" % k) * 9 + b"eq%c" % (k + 1) for k in range(40))
    return b"\x80\x02" + b"](" * 40 + b"]q\x00" + closed + b"."


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "damaged"),
    "no pickle": (b"coords", "damaged"),
    "half of one": (pickle.dumps(BOXES, 4)[:-7], "damaged"),
    "eval": (global_of("builtins", "eval") + b"(V1+1\ntR.", "eval"),
    "a name of a line": (global_of("os\x1b[31m", "system"), "os?[31m.system"),
    "a hidden name": (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x93\x94.", "os.system"),
    "a terminal's": (b"\x80\x04\x8c\x03o\x1bs\x8c\x02x\n\x93.", "o?s.x?"),
    "scalar of objects": (
        pickle.dumps([np.array(["x"], object)]),
        "more than boxes",
    ),
    "an array": (pickle.dumps(np.array(BOXES)), "more than boxes"),
    "floats of numpy": (pickle.dumps([tuple(np.array(b, float)) for b in BOXES]), "'f8'"),
    "floats": (pickle.dumps([(1.5, 2.0, 3.0, 4.0)]), "BINFLOAT"),
    "a dictionary": (pickle.dumps({"a": 1}), "EMPTY_DICT"),
    "a set": (pickle.dumps([{1, 2}], 4), "EMPTY_SET"),
    "three numbers": (pickle.dumps([(1, 2, 3)]), "entry 0 is not four numbers"),
    "nested": (pickle.dumps([([1], 2, 3, 4)]), "entry 0 holds more than whole numbers"),
    "true": (pickle.dumps([(True, 2, 3, 4)]), "entry 0 holds more than whole numbers"),
    "text": (pickle.dumps([("1", 2, 3, 4)]), "entry 0 holds more than whole numbers"),
    "a number alone": (pickle.dumps(7), "no list"),
    "a large number": (pickle.dumps([(1 << 40, 2, 3, 4)]), "more than whole numbers"),
    "a huge number": (pickle.dumps([(1 << 90_000, 2, 3, 4)], 2), "LONG4"),
    "many digits": (b"(lp0\n(I" + b"9" * 100_000 + b"\nI1\nI1\nI1\ntp1\na.", "damaged"),
    "bytes that claim to be many": (b"\x80\x04B" + struct.pack("<I", 1 << 31) + b"x.", "damaged"),
    "a frame that claims": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"].", "0 rect"),
    "an array of bytes": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "damaged"),
    "a bomb of lists": (memo_bomb(), "0 is not four numbers"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "entry 0 is not four numbers"),
    "an empty stack": (b"\x80\x02a.", "damaged"),
    "a mark too few": (b"\x80\x02]e.", "damaged"),
    "a memo that is not there": (b"\x80\x02h\x05.", "damaged"),
    "two values": (b"\x80\x02]].", "damaged"),
    "persistent": (b"Psomething\n.", "PERSID"),
    "an instance": (b"(ios\nsystem\n.", "INST"),
    "extension": (b"\x80\x02\x82\x01.", "EXT1"),
    "built": (b"\x80\x02](K\x01K\x01K\x01K\x01tb.", "sets what boxes do not have"),
    "a dtype called": (global_of("numpy", "dtype") + b"(VO8\nI0\nI1\ntR.", "'O8'"),
    "a scalar called alone": (global_of("numpy.core.multiarray", "scalar") + b")R.", "scalar"),
    "encoded twice over": (global_of("_codecs", "encode") + b"(Vx\nVzip\ntR.", "encode"),
    "called without a name": (b"\x80\x02K\x01)R.", "a value"),
    "a dtype's other form": (
        global_of("numpy", "dtype") + b"(Vi8\nI0\nI1\ntR(I3\nV<\nNN(I1\ntI-1\nI-1\nI0\ntb.",
        "another kind",
    ),
    "half a number": (
        pickle.dumps([tuple(np.array(b)) for b in BOXES], 3).replace(
            b"C\x08\x14\0\0\0\0\0\0\0", b"C\x04\x14\0\0\0"
        ),
        "damaged",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_ones(tmp_path: Path, name: str) -> None:
    data, word = HOSTILE[name]
    refused(tmp_path, data, word)


@pytest.mark.parametrize("steps", [b"]", b"\x94", b"\x85", b"]a"])
def test_many_steps_take_little_memory(tmp_path: Path, steps: bytes) -> None:
    """As many as the file may have bytes: refused before they have taken much."""
    data = b"\x80\x04]\x94" + steps * ((4 << 20) // len(steps) - 10) + b"."
    tracemalloc.start()
    with pytest.raises(AvatarImportError, match="more than 620000 operations"):
        read(tmp_path, data)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 128 << 20


def test_where_and_how_large_it_is(tmp_path: Path) -> None:
    file = tmp_path / "coords.pkl"
    with file.open("wb") as out:
        out.truncate(10 << 30)
    with pytest.raises(AvatarImportError, match="bytes, expected a pickled list"):
        read_coords(file, tmp_path.resolve())
    file.unlink()
    with pytest.raises(AvatarImportError, match="missing"):
        read_coords(file, tmp_path.resolve())
    os.mkfifo(file)
    with pytest.raises(AvatarImportError, match="is not a file"):
        read_coords(file, tmp_path.resolve())
    file.unlink()
    (tmp_path / "elsewhere").write_bytes(pickle.dumps(BOXES))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "coords.pkl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AvatarImportError, match="leads out of"):
        read_coords(tmp_path / "inner" / "coords.pkl", (tmp_path / "inner").resolve())


@settings(max_examples=300, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    protocol=st.integers(0, 5),
    numpy=st.booleans(),
)
def test_damaged_ones_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    edits: list[tuple[int, int]],
    protocol: int,
    numpy: bool,
) -> None:
    boxes: Any = [tuple(np.array(b)) for b in BOXES] if numpy else BOXES
    data = bytearray(pickle.dumps(boxes, protocol))
    for at, value in edits:
        data[at % len(data)] = value
    try:
        made = read(tmp_path_factory.getbasetemp(), bytes(data))
    except AvatarImportError:
        return
    assert made.shape[1] == 4
    assert np.isfinite(made).all()


def test_the_reader_knows_the_operations_of_pickle() -> None:
    """Their names are those of the module that goes through them."""
    from lipsync_fast.avatars.importing.coords import _PLAIN, _Reader

    known = {operation.name for operation in pickletools.opcodes}
    assert set(_Reader()._steps) <= known
    assert set(_PLAIN) <= known
