# SPDX-License-Identifier: Apache-2.0
"""What a file is that bears another's name: by its bytes, for the line that refuses it.

A download that went wrong leaves a web page, an error in JSON or a pointer under the name of a
checkpoint or a recording; and formats share endings. Nothing is read but the first kilobytes, and a
zip's directory; nothing is believed of it but for that line.
"""

from __future__ import annotations

import os
import re
import zipfile
from typing import BinaryIO

HEAD_BYTES = 4096
ONNX = "an ONNX network"
_LFS = b"version https://git-lfs.github.com/spec/"
_ANNEX = re.compile(rb"(?:\.\./)*(?:\.git)?/?annex/objects/")
_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|title|script|meta)\b", re.IGNORECASE)
_ONNX = re.compile(rb"\x08[\x01-\x14](?:\x12[\x00-\x40]|\x1a|\x22|\x3a|\x42)", re.DOTALL)
_STARTS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes"),
    (0, b"GGUF", "a GGUF file"),
    (4, b"TFL3", "a TensorFlow Lite network"),
    (0, b"\x93NUMPY", "a NumPy array (.npy)"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"\xfd7zXZ\x00", "an xz archive; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
    (0, b"BZh", "a bzip2 archive; unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (0, b"Rar!\x1a\x07", "a RAR archive; unpack it first"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\x89PNG\r\n\x1a\n", "a picture (PNG)"),
    (0, b"\xff\xd8\xff", "a picture (JPEG)"),
    (0, b"GIF8", "a picture (GIF)"),
    (8, b"WEBP", "a picture (WebP)"),
    (8, b"WAVE", "a recording (WAV)"),
    (8, b"AVI ", "a video (AVI)"),
    (4, b"ftyp", "a video or recording (MP4)"),
    (0, b"\x1aE\xdf\xa3", "a video or recording (Matroska, WebM)"),
    (0, b"OggS", "a recording (Ogg)"),
    (0, b"fLaC", "a recording (FLAC)"),
    (0, b"ID3", "a recording (MP3)"),
    (0, b"FLV\x01", "a video (FLV)"),
    (0, b"\x7fELF", "a program (ELF)"),
    (0, b"MZ", "a program (Windows)"),
    (0, b"SQLite format 3\x00", "an SQLite database"),
    (0, b"\x80\x02", "a Python pickle"),
    (0, b"\x80\x03", "a Python pickle"),
    (0, b"\x80\x04", "a Python pickle"),
    (0, b"\x80\x05", "a Python pickle"),
)


def what_lies_at(path: str | os.PathLike[str]) -> str:
    """What a file is, such as "a web page (HTML)"; empty where nothing is known of it."""
    try:
        # Not waiting: it may be a pipe that nobody fills.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return what_is(file)
    except OSError:
        return ""


def refused_as(path: str | os.PathLike[str]) -> str:
    """``what_lies_at`` as the end of a message: "; it is a web page (HTML)"; may be empty."""
    known = what_lies_at(path)
    return f"; it is {known}" if known else ""


def what_is(file: BinaryIO) -> str:
    """What an open file is; empty where nothing is known of it. It may stand anywhere afterwards.

    Raises:
        OSError: it cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        return "an empty file (0 bytes)"
    if head.startswith(_LFS) or _ANNEX.match(head):
        how = "git lfs pull" if head.startswith(_LFS) else "git annex get"
        return f"a Git {'LFS' if how.endswith('pull') else 'annex'} pointer, not the file itself;" \
            f" fetch that with {how}"  # fmt: skip
    if head.startswith(b"PK\x03\x04"):
        return what_zip_is(file)
    if _is_safetensors(head, size):
        return "a safetensors file"
    if _ONNX.match(head):
        return ONNX
    for at, start, what in _STARTS:
        if head[at:].startswith(start):
            return what
    if not head.strip(b"\0"):
        return "a file that begins with nothing but zeros, such as a download leaves that broke off"
    return _text(head)


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return 2 <= length <= size - 8 and head[8:].lstrip().startswith(b"{")


def _text(head: bytes) -> str:
    """What kind of text it is; empty for bytes that are none."""
    plain = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    start = re.sub(rb"\A(?:<!--.*?-->|<\?xml[^>]*\?>|\s)+", b"", plain, flags=re.DOTALL)
    if _HTML.match(start):
        return "a web page (HTML); was it a login or an error page that was saved?"
    try:
        text = plain.decode()
    except UnicodeDecodeError as error:
        if error.start < len(plain) - 4:  # else only its last character is cut
            return ""
        text = plain[: error.start].decode()
    if any(not c.isprintable() and not c.isspace() for c in text):
        return ""
    if start != plain or start.startswith(b"<"):
        return "an XML document"
    if text.startswith(("#EXTM3U", "ffconcat version")):
        return "a playlist, which names other files"
    shown = " ".join(text.split())
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"{'JSON' if shown[:1] in '{[' else 'a text'}: {shown}"


def what_zip_is(file: BinaryIO) -> str:
    """What an open zip is, by the names in it."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    length = int.from_bytes(head[26:28], "little")
    first = head[30 : 30 + length].decode("ascii", "replace")
    try:
        with zipfile.ZipFile(file) as archive:
            names = [info.filename for info in archive.infolist()[:1000]]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError):
        what = "a checkpoint" if first.endswith("/data.pkl") else "a zip archive"
        return f"{what} that is cut off or damaged: its end, where a zip has its directory, is none"
    last = {name.split("/")[-1] for name in names}
    if "constants.pkl" in last:
        return "a TorchScript archive"
    if "data.pkl" in last:
        return "a PyTorch checkpoint"
    if "model.weights.h5" in last:
        return "a Keras model"
    if "[Content_Types].xml" in last:
        return "an Office document"
    if "META-INF/MANIFEST.MF" in names:
        return "a Java archive"
    if "manifest.json" in names:
        return "an avatar package (.lsa)"
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy arrays (.npz)"
    if not names:
        return "a zip archive with nothing in it"
    shown = ", ".join(ascii(name[-40:])[1:-1] for name in names[:3])
    return f"a zip archive of {shown}{', …' if len(names) > 3 else ''}"
