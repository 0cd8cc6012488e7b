# SPDX-License-Identifier: Apache-2.0
"""What reads strangers' bytes, as functions of bytes: each returns, or raises for a defect alone.

``tools/fuzz.py`` runs them with coverage guidance; the tests run them over what was found.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tempfile
import wave
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec
import numpy as np

from lipsync_fast.avatars.importing.coords import read_coords
from lipsync_fast.avatars.jpeg import decode, encode_frame, segment_offsets
from lipsync_fast.avatars.manifest import FileEntry, FrameJpeg, Manifest
from lipsync_fast.avatars.package import AvatarPackage, read_manifest
from lipsync_fast.avatars.storage import read_array, unpacked_mask, write_array
from lipsync_fast.avatars.writer import packed_mask
from lipsync_fast.errors import (
    AvatarError,
    LegacyRequestError,
    MediaError,
    MessageError,
    ProtocolError,
    UnsafePickleError,
    UnsatisfiableRangeError,
)
from lipsync_fast.frontend.http.content import parse_range
from lipsync_fast.frontend.legacy import json_messages, wire
from lipsync_fast.ipc.messages import read_answer, read_job, samples_of
from lipsync_fast.media.claims import missing_bytes, understated
from lipsync_fast.onnx_io.check import check_network
from lipsync_fast.untrusted.pickles import check_checkpoint
from lipsync_fast_client.protocol import (
    decode_client,
    decode_server,
    encode,
    pack_media,
    unpack_media,
)

LONGEST = 1000
"""Characters of an error: it is a line, whatever was read."""


def one_line(error: Exception) -> None:
    """An error of ours is a line that can be shown."""
    assert str(error), error
    assert len(str(error)) < LONGEST, len(str(error))
    assert "\n" not in str(error), str(error)


@contextlib.contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Within, these errors are what bad input is to bring about."""
    try:
        yield
    except kinds as error:
        one_line(error)


@contextlib.contextmanager
def as_file(data: bytes) -> Iterator[Path]:
    """A file without a name that has these bytes."""
    fd = os.memfd_create("input", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass" if data[:1] != b"\xff" else "replace")


# ---------------------------------------------------------------- avatars
def manifest(data: bytes) -> None:
    """A package's manifest."""
    with refusing(AvatarError):
        found = read_manifest(memoryview(data), "manifest.json")
        assert found.rules.need("decoder", found.width, found.region).live > 0
        assert found.levels


def package(data: bytes) -> None:
    """A whole .lsa, and what is read of its first and last frame."""
    with as_file(data) as path, refusing(AvatarError), AvatarPackage.open(path) as found:
        for index in {0, found.manifest.frame_count - 1}:
            with refusing(AvatarError):
                found.frame_jpeg(index)
                found.frame_segments(index)
                found.rect(index)
                found.mask(index)
                found.crop(index)
        for name in found.member_names():
            found.member(name)
        found.verify()


def array(data: bytes) -> None:
    """A .npy file of a package."""
    with refusing(AvatarError):
        read_array(memoryview(data), "x.npy").sum()


def mask(data: bytes) -> None:
    """A packed mask."""
    with refusing(AvatarError):
        assert unpacked_mask(memoryview(data), (37, 21), "mask 0").shape == (21, 37)


def picture(data: bytes) -> None:
    """A frame's JPEG: its segments, and its pixels."""
    with refusing(AvatarError):
        offsets = segment_offsets(data)
        assert offsets[-1] < len(data)
        assert np.all(offsets[1:] >= offsets[:-1])
    with refusing(AvatarError):
        decode(data, (32, 48), "frame 0")


def network(data: bytes) -> None:
    """A network of a package."""
    with refusing(AvatarError):
        check_network(data, "decoder.onnx")


def coords(data: bytes) -> None:
    """A pickle of face boxes of an avatar that is imported."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, refusing(AvatarError):
        path = Path(folder) / "coords.pkl"
        path.write_bytes(data)
        read_coords(path, Path(folder))


def checkpoint(data: bytes) -> None:
    """A file of weights."""
    with as_file(data) as path, refusing(UnsafePickleError):
        check_checkpoint(path)


# ---------------------------------------------------------------- clients
def client_message(data: bytes) -> None:
    """A text of a client of lipsync.v1; what was read is written and read again."""
    with contextlib.suppress(UnicodeDecodeError), refusing(ProtocolError):
        message = decode_client(_text(data))
        assert decode_client(encode(message)) == message


def server_message(data: bytes) -> None:
    """A text of a server."""
    with contextlib.suppress(UnicodeDecodeError), refusing(ProtocolError):
        decode_server(_text(data))


def media_message(data: bytes) -> None:
    """A picture or a sound of a server: header and payload."""
    with refusing(ProtocolError):
        header, payload = unpack_media(data)
        assert unpack_media(pack_media(header) + bytes(payload))[0] == header


def legacy_binary(data: bytes) -> None:
    """A binary request of an old client."""
    with refusing(LegacyRequestError):
        wire.parse(data)


def legacy_text(data: bytes) -> None:
    """A text of an old client."""
    with contextlib.suppress(UnicodeDecodeError), refusing(LegacyRequestError):
        asked = json_messages.parse(_text(data))
        assert len(asked.type) <= json_messages.MOST_TEXT
        if asked.problem is not None:
            assert "\n" not in asked.problem


def byte_range(data: bytes) -> None:
    """The header Range."""
    with contextlib.suppress(UnsatisfiableRangeError):
        span = parse_range(data.decode("latin-1"), 1000)
        assert span is None or 0 <= span[0] < span[1] <= 1000


def job(data: bytes) -> None:
    """A record of a ring, whichever way it goes."""
    with refusing(MessageError):
        samples_of(read_job(memoryview(data))[1])
    with refusing(MessageError):
        read_answer(memoryview(data))


# ---------------------------------------------------------------- sound
def wav(data: bytes) -> None:
    """The head of a WAV file."""
    with as_file(data) as path, refusing(MediaError):
        assert missing_bytes(path) >= 0
        understated(path)


TARGETS: Mapping[str, Callable[[bytes], None]] = MappingProxyType(
    {
        f.__name__: f
        for f in (
            manifest,
            package,
            array,
            mask,
            picture,
            network,
            coords,
            checkpoint,
            client_message,
            server_message,
            media_message,
            legacy_binary,
            legacy_text,
            byte_range,
            job,
            wav,
        )
    }
)


# ---------------------------------------------------------------- what to begin with
def small_package(**changed: bytes | None) -> bytes:
    """A whole .lsa of 2 KB, whose networks are none; members by name with _ for the last dot."""
    picture = encode_frame(np.full((32, 48, 3), 90, np.uint8), FrameJpeg())
    covered = packed_mask(np.eye(16, dtype=np.bool_))
    members: dict[str, bytes] = {
        "frames.bin": picture * 2,
        "frames.npy": write_array(np.array([0, len(picture), 2 * len(picture)], np.uint64)),
        "segments.npy": write_array(np.stack([segment_offsets(picture)] * 2)),
        "rects.npy": write_array(np.array([[8, 8, 24, 24]] * 2, np.int32)),
        "masks.bin": covered,
        "masks.npy": write_array(np.array([0, len(covered), len(covered)], np.uint64)),
        "thumbnail.jpg": picture,
        **{f"models/{name}.onnx": b"\x08" for name in ("audio_encoder", "image", "decoder")},
    }
    members |= {n: d for n, d in changed.items() if d is not None}
    files = {n: FileEntry(size=len(d), sha256="0" * 64) for n, d in members.items()}
    said = Manifest(
        name="x", width=2, region=224, frame_width=48, frame_height=32, frame_count=2, files=files
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in {"manifest.json": msgspec.json.encode(said), **members}.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def small_network() -> bytes:
    """One operator on one input: the format's fields by hand."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    shape = field(1, b"\x08\x01" + field(2, field(1, b"\x08\x01") + field(1, b"\x08\x09")))
    graph = (
        field(1, field(1, b"a") + field(1, b"w") + field(2, b"b") + field(4, b"Add"))
        + field(5, b"\x08\x01\x10\x01" + field(8, b"w") + field(9, b"\0\0\x80?"))
        + field(11, field(1, b"a") + field(2, shape))
        + field(12, field(1, b"b") + field(2, field(1, b"\x08\x01")))
    )
    return b"\x08\x09" + field(7, graph) + field(8, b"\x10\x11")


def seeds(name: str) -> list[bytes]:
    """Good input for a target, to begin with."""
    coded = encode_frame(np.full((48, 32, 3), 90, np.uint8), FrameJpeg())
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(64))
    numbers = write_array(np.arange(6, dtype=np.int32).reshape(2, 3))
    said = zipfile.ZipFile(io.BytesIO(small_package())).read("manifest.json")
    start = b'{"type":"session.start","avatar":"demo","audio":{"sample_rate":16000},"pace":"live"}'
    request = struct.pack("<I", 4) + b"demo" + struct.pack("<II", 7, 4) + bytes(4)
    found: dict[str, list[bytes]] = {
        "manifest": [said],
        "package": [small_package()],
        "array": [numbers],
        "mask": [packed_mask(np.eye(37, dtype=np.bool_)[:21])],
        "picture": [coded],
        "network": [small_network()],
        "coords": [b"\x80\x04]\x94((K\x01K\x02K\x03K\x04t\x94(K\x01K\x02K\x03K\x04t\x94e."],
        "checkpoint": [
            b"\x80\x02}q\x00.",
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
        ],
        "client_message": [start, b'{"type":"utterance.end"}', b'{"type":"ping","id":1}'],
        "server_message": [b'{"type":"pong","id":1}', b'{"type":"error","code":"internal"}'],
        "media_message": [bytes(48)],
        "legacy_binary": [request, b"\x04demo\x07\0\0\0"],
        "legacy_text": [b'{"type":"inference","model_name":"demo","audio_override":"AAAA"}'],
        "byte_range": [b"bytes=0-99", b"bytes=-5"],
        "job": [b"\x04\0\0\0\x93\x00\x01\x02" + bytes(16)],
        "wav": [sound.getvalue()],
    }
    return found[name]
