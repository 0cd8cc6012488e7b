# SPDX-License-Identifier: Apache-2.0
"""Folders and weights from strangers, as ``avatar import`` takes them in.

Wrong landmarks, pictures and checkpoints are tested in test_avatar_import_faults.py and
test_checkpoints.py; here are those that would cost memory or time, or lead elsewhere.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from forking import Forked
from PIL import Image
from trust import everything, linked, refused, replace, taken_in

torch = pytest.importorskip("torch", reason="the extra train is not installed")

from lipsync_fast.models.audio_encoder import AudioEncoder  # noqa: E402
from lipsync_fast.models.unet import UNet  # noqa: E402

GIB = 1 << 30


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole data set at ``dataset/ann``, with its weights."""
    root = tmp_path_factory.mktemp("original")
    data, weights = root / "dataset" / "ann", root / "checkpoint" / "ann"
    for folder in (data / "full_body_img", data / "landmarks", data / "parsing", weights):
        folder.mkdir(parents=True)
    points = np.zeros((110, 2))
    points[1, 0], points[52, 1], points[31, 0] = 20, 10, 70
    for i in range(2):
        picture = Image.fromarray(np.full((80, 96, 3), 50 * i, np.uint8))
        picture.save(data / "full_body_img" / f"{i}.jpg")
        picture.save(data / "parsing" / f"{i}.png")
        (data / "landmarks" / f"{i}.lms").write_text("".join(f"{x} {y}\n" for x, y in points))
    torch.save(UNet(2).state_dict(), weights / "9.pth")
    torch.save(AudioEncoder().state_dict(), weights / "audio_visual_encoder.pth")
    return root


def sparse(path: Path) -> None:
    """A file of 10 GB that takes no room."""
    path.unlink()
    with path.open("wb") as file:
        file.truncate(10 * GIB)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def elsewhere(path: Path) -> None:
    """A link to a good file that lies outside the data set."""
    secret = path.parents[3] / f"secret-{path.name}"
    path.rename(secret)
    path.symlink_to(secret)


def relative(path: Path) -> None:
    elsewhere(path)
    target = os.path.relpath(path.resolve(), path.parent)
    path.unlink()
    path.symlink_to(target)


def whole_folder(path: Path) -> None:
    shutil.move(path.parent, path.parents[3] / "pictures")
    path.parent.symlink_to(path.parents[3] / "pictures")


def jpeg(width: int, height: int, **how: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 60)).save(out, "JPEG", **how)
    return out.getvalue()


def jpeg_bomb(path: Path) -> None:
    raw = bytearray(jpeg(96, 80))
    at = raw.find(b"\xff\xc0")
    raw[at + 5 : at + 9] = struct.pack(">2H", 65_500, 65_500)
    replace(path, bytes(raw))


def large_jpeg(path: Path) -> None:
    """Just below what Pillow itself refuses: 500 MB of pixels from a file of 1 KB."""
    raw = bytearray(jpeg(96, 80))
    at = raw.find(b"\xff\xc0")
    raw[at + 5 : at + 9] = struct.pack(">2H", 13_000, 13_000)
    replace(path, bytes(raw))


def png_bomb(path: Path) -> None:
    """100,000 x 100,000 pixels that are all there, in some 40 KB for a strip of them."""
    head = struct.pack(">2L5B", 100_000, 100_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))
        )

    pixels = zlib.compress(bytes(40_000_000), 9)
    replace(path, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels))


def many_scans(path: Path) -> None:
    data = jpeg(96, 80, progressive=True)
    last = data.rindex(b"\xff\xda")
    replace(path, data[:-2] + data[last:-2] * 20_000 + b"\xff\xd9")


def cut_short(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 96, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "JPEG", restart_marker_blocks=4)
    data = out.getvalue()
    replace(path, data[: data.index(b"\xff\xd3") + 9])


PICTURE, LANDMARKS, MAP = "full_body_img/0.jpg", "landmarks/1.lms", "parsing/1.png"
FILES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "landmarks of 10 GB": (LANDMARKS, sparse, "expected landmarks of at most 65536"),
    "a picture of 10 GB": (PICTURE, sparse, "expected a picture of at most 268435456"),
    "a map of 10 GB": (MAP, sparse, "expected a picture of at most 268435456"),
    **{
        f"{what} as {name}": (name, make, word)
        for name in (PICTURE, LANDMARKS, MAP)
        for what, make, word in (
            ("a pipe", pipe, "not a file"),
            ("a device", device, "not a file"),
            ("a link that leads out", elsewhere, "leads out of"),
            ("a link by ..", relative, "leads out of"),
        )
    },
    "a folder that lies elsewhere": (PICTURE, whole_folder, "leads out of"),
    "a JPEG of 65,500 x 65,500": (PICTURE, jpeg_bomb, ""),
    "a JPEG of 13,000 x 13,000": (PICTURE, large_jpeg, "pixels"),
    "a PNG of 100,000 x 100,000": (MAP, png_bomb, ""),
    "a JPEG of 20,000 scans": (PICTURE, many_scans, "scans"),
    "a JPEG that ends within a segment": (PICTURE, cut_short, "picture"),
}


def test_hostile_data_sets_are_refused(original: Path, tmp_path: Path) -> None:
    """By one process with little memory to spare; no package is begun that is not removed."""
    folder = tmp_path / "sets"
    jobs, words = [], []
    for number, (name, spoil, word) in enumerate(FILES.values()):
        root = linked(original, folder / str(number))
        spoil(root / "dataset" / "ann" / name)
        (root / "avatars").mkdir()
        jobs.append(("imported", root / "dataset" / "ann"))
        words.append(word)
    good = linked(original, tmp_path / "good") / "dataset" / "ann"
    outcomes = taken_in(("imported", good), jobs, folder)
    assert (tmp_path / "good" / "avatars" / "ann" / "manifest.json").is_file()
    for outcome, word in zip(outcomes, words, strict=True):
        refused(outcome, word)
        assert list((Path(outcome.path).parents[1] / "avatars").iterdir()) == []


# Weights


def saved(**extra: object) -> bytes:
    out = io.BytesIO()
    torch.save({**UNet(2).state_dict(), **extra}, out)
    return out.getvalue()


def listing(code: bytes) -> bytes:
    """A checkpoint in torch's form whose list of tensors is a pickle of one's own."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def compressed() -> bytes:
    """Zeros, a thousand to one."""
    wide = torch.zeros(16 << 20)
    out = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(saved(wide=wide)))
    with source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    return out.getvalue()


def overlapping() -> bytes:
    """Many members that are the same bytes of the file."""
    raw = bytearray(saved())
    end = raw.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack_from("<H2L", raw, end + 10)
    entry = raw[start : start + size]
    biggest = max(range(len(entry)), key=lambda at: _size_at(entry, at))
    one = entry[biggest : biggest + 46 + sum(struct.unpack_from("<3H", entry, biggest + 28))]
    tail = bytearray(raw[end:])
    struct.pack_into("<2H2L", tail, 8, count + 5_000, count + 5_000, size + 5_000 * len(one), start)
    return bytes(raw[: start + size] + one * 5_000 + tail)


def _size_at(entry: bytes, at: int) -> int:
    return (
        int.from_bytes(entry[at + 24 : at + 28], "little")
        if entry[at : at + 4] == b"PK\1\2"
        else -1
    )


BYTES = b"\x80\x02cbuiltins\nbytearray\n"
COPIES = (
    b"\x80\x02]q\x00("
    + b"K\x01" * 50_000
    + b"e("
    + b"ccollections\nOrderedDict\nh\x00\x85R" * 2_000
)
WEIGHTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bytearray of 8 GiB": (lambda: listing(BYTES + b"\x8a\x05\0\0\0\0\x02\x85R."), "bytearray"),
    "a bytearray of 2^62": (
        lambda: listing(BYTES + b"\x8a\x08\0\0\0\0\0\0\0\x40\x85R."),
        "bytearray",
    ),
    "a tensor of 2^40": (
        lambda: listing(b"\x80\x02ctorch\nFloatTensor\n\x8a\x06\0\0\0\0\0\x01\x85R."),
        "torch.FloatTensor",
    ),
    "a storage of 2^40": (
        lambda: listing(b"\x80\x02ctorch.storage\nUntypedStorage\n\x8a\x06\0\0\0\0\0\x01\x85R."),
        "UntypedStorage",
    ),
    "a list that is copied 2,000 times": (lambda: listing(COPIES + b"t."), "OrderedDict"),
    "code that runs": (lambda: listing(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R."), "os.system"),
    "code by another way": (
        lambda: listing(b"\x80\x02cbuiltins\ngetattr\nctorch\nload\nX\x01\0\0\0x\x86R."),
        "getattr",
    ),
    "a pickle of another protocol": (
        lambda: listing(pickle.dumps({"a": [1, 2]}, 4)),
        "more than tensors",
    ),
    "a stack that is empty": (lambda: listing(b"\x80\x02R."), "damaged"),
    "a list of tensors of 20 MB": (lambda: listing(b"\x80\x02" + b"N0" * (10 << 20) + b"."), ""),
    "a text of 4 GiB": (lambda: listing(b"\x80\x02X\xff\xff\xff\xffx."), ""),
    "compressed members": (compressed, "compressed"),
    "members that overlap": (overlapping, ""),
    "two lists of tensors": (
        lambda: listing(b"\x80\x02N.").replace(b"archive/version", b"again//data.pkl"),
        "again//data.pkl",
    ),
}


def test_hostile_weights_are_refused(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    jobs, words = [], []
    for number, (make, word) in enumerate(WEIGHTS.values()):
        (folder / f"{number}.pth").write_bytes(make())
        jobs.append(("weights", folder / f"{number}.pth"))
        words.append(word)
    for name, spoil in (("pipe", pipe), ("device", device), ("huge", sparse)):
        (folder / name).touch()
        spoil(folder / name)
        jobs.append(("weights", folder / name))
        words.append("not a checkpoint file")
    good = original / "checkpoint" / "ann" / "9.pth"
    for outcome, word in zip(taken_in(("weights", good), jobs, folder), words, strict=True):
        refused(outcome, word)


class Intruder:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_what_runs_code_by_the_command_line(
    original: Path, tmp_path: Path, commands: Forked
) -> None:
    """A checkpoint, and a folder in another form whose rectangles are a pickle."""
    mark = tmp_path / "intruder"
    root = linked(original, tmp_path / "set")
    replace(root / "checkpoint" / "ann" / "9.pth", pickle.dumps({"a": Intruder(mark)}, 2))
    other = tmp_path / "wav2lip"
    (other / "full_imgs").mkdir(parents=True)
    Image.new("RGB", (96, 80)).save(other / "full_imgs" / "00000000.png")
    shutil.copy(original / "checkpoint" / "ann" / "9.pth", other / "wav2lip.pth")
    (other / "coords.pkl").write_bytes(pickle.dumps([Intruder(mark)] * 2))
    before = everything(tmp_path)
    for path, word in ((root / "dataset" / "ann", "Python pickle"), (other, "mkdir")):
        home = {"XDG_DATA_HOME": str(tmp_path / "home")}
        done = commands.run("avatar", "import", "--quiet", path, env=os.environ | home)
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1
        assert word in done.stderr
    assert everything(tmp_path) == before
    pickle.loads((other / "coords.pkl").read_bytes()[:0] or pickle.dumps(Intruder(mark)))
    assert mark.is_dir(), "the payload would have worked"


# What is prepared


def array(shape: tuple[int, ...], data: bytes, kind: str = "<f4") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return out.getvalue() + data


def npz(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def test_hostile_landmarks_of_a_video(original: Path, tmp_path: Path) -> None:
    folder = tmp_path / "landmarks"
    folder.mkdir()
    good = original / "dataset" / "ann" / "landmarks"
    for name, spoil in (("sparse", sparse), ("pipe", pipe), ("device", device)):
        spoil(linked(good, folder / name) / "1.lms")
        (folder / f"{name}.npy").touch()
        spoil(folder / f"{name}.npy")
    objects = pickle.dumps([Intruder(tmp_path / "intruder")] * 2)
    (folder / "objects.npy").write_bytes(array((2,), objects, "|O"))
    (folder / "claims.npy").write_bytes(array((1 << 20, 110, 2), bytes(880)))
    (folder / "claims2.npy").write_bytes(array((1 << 40, 1 << 40), b""))
    bomb = bytearray(npz("landmarks.npy", bytes(1 << 20)))
    struct.pack_into("<L", bomb, bomb.rindex(b"PK\1\2") + 24, 600 << 20)
    (folder / "bomb.npz").write_bytes(bomb)
    (folder / "objects.npz").write_bytes(npz("x.npy", array((2,), objects, "|O")))
    (folder / "up.npz").write_bytes(npz("../x.npy", b"x"))
    jobs = [("marked", path) for path in sorted(folder.iterdir())]
    for outcome in taken_in(("marked", good), jobs, folder):
        refused(outcome)
    assert not (tmp_path / "intruder").exists()


def video(path: Path, side: int) -> Path:
    """A video whose container and stream claim ``side`` x ``side`` pixels."""
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 80, "yuvj420p"
        sound = container.add_stream("pcm_s16le", rate=16_000)
        for _ in range(5):
            picture = av.VideoFrame.from_ndarray(np.zeros((80, 96, 3), np.uint8), "rgb24")
            container.mux(stream.encode(picture))
            pcm = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.int16), "s16", "mono")
            pcm.sample_rate = 16_000
            container.mux(sound.encode(pcm))
        container.mux(stream.encode(None))
        container.mux(sound.encode(None))
    raw = path.read_bytes()
    small, large = struct.pack("<2L", 96, 80), struct.pack("<2L", side, side)
    assert raw.count(small) >= 2
    raw = raw.replace(small, large)
    if side < 65_536:
        raw = raw.replace(struct.pack(">2H", 80, 96), struct.pack(">2H", side, side))
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("side", [100_000, 65_500, 13_000])
def test_a_video_that_claims_to_be_huge(tmp_path: Path, side: int) -> None:
    """Preparing goes by the pictures; a render takes its sound, which costs what sound does."""
    folder = tmp_path / "videos"
    folder.mkdir()
    good, bad = video(folder / "good.avi", 96), video(folder / "bad.avi", side)
    replace(good, good.read_bytes())
    prepared, heard = taken_in(("heard", good), [("prepared", bad), ("heard", bad)], folder)
    assert not heard.kind
    if side < 65_536:  # what its pictures say themselves, too
        refused(prepared)
    else:
        assert not prepared.kind, "what a header says counts for nothing, and costs nothing"
