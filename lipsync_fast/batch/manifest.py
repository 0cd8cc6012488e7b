# SPDX-License-Identifier: Apache-2.0
"""The list of recordings that are to be made: JSON lines, or CSV with a line of headings.

    {"audio": "calls/0001.wav", "avatar": "anna", "out": "0001.mp4", "start_frame": 0}

Only ``audio`` is needed: a path, or a URL. Paths count from the list's own folder on. All of it is
checked before anything is made.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from lipsync_fast.errors import ManifestError, ObjectError, words_of
from lipsync_fast.names import shown
from lipsync_fast.objects import checked_url, is_url

MOST_BYTES = 1 << 30
"""Size of a list."""
MOST_RECORDINGS = 1_000_000
MOST_FAULTS = 5
"""Faults that are told; of more, their number."""
NAME_BYTES = 200
"""Of a part of an output's name: file systems allow 255."""
KEYS = ("audio", "avatar", "out", "start_frame")


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """One recording that is to be made.

    Attributes:
        line: of the list, from 1; it is the recording's number, too.
        audio: an absolute path, or a URL.
        avatar: name, path or URL.
        out: the video's name in the folder of outputs, with slashes, ending in .mp4.
        start_frame: which of the avatar's frames to begin with.
    """

    line: int
    audio: str
    avatar: str
    out: str
    start_frame: int = 0


class _Line(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    audio: str
    avatar: str | None = None
    out: str | None = None
    start_frame: int | None = None


@dataclass
class _LineError(Exception):
    why: str


def read_manifest(file: Path, avatar: str = "demo", start_frame: int = 0) -> list[Recording]:
    """The recordings of a list, in its order.

    Args:
        avatar, start_frame: of those that name none.

    Raises:
        ManifestError: it cannot be read, holds no recording, or lines that cannot be; says which.
    """
    folder = file.absolute().parent
    recordings: list[Recording] = []
    faults: list[str] = []
    lines_by_name: dict[str, int] = {}
    for number, line in _lines(file):
        try:
            if isinstance(line, _LineError):
                raise line
            made = _recording(number, line, folder, avatar, start_frame)
            before = lines_by_name.setdefault(made.out, number)
            if before != number:
                raise _LineError(f"the output {made.out!r} is line {before}'s already")
            recordings.append(made)
        except _LineError as fault:
            faults.append(f"line {number}: {fault.why}")
        if len(recordings) > MOST_RECORDINGS:
            raise ManifestError(f"{file}: has more than {MOST_RECORDINGS} recordings; divide it")
    faults += _folders_that_are_files(recordings, lines_by_name)
    if faults:
        more = len(faults) - MOST_FAULTS
        told = "; ".join(faults[:MOST_FAULTS]) + (f"; and {more} more" if more > 0 else "")
        raise ManifestError(f"{file}: {told}")
    if not recordings:
        raise ManifestError(f"{file}: holds no recordings")
    return recordings


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any] | _LineError]]:
    """Numbers of lines, and what stands in them."""
    try:
        if not file.is_file():
            what = "is no file" if file.exists() else "no such file"
            raise ManifestError(f"{file}: {what}; expected a list of recordings")
        if file.stat().st_size > MOST_BYTES:
            raise ManifestError(f"{file}: larger than 1 GiB; expected a list of recordings")
        with open(file, encoding="utf-8-sig", newline="") as stream:
            yield from _of_csv(file, stream) if file.suffix.lower() == ".csv" else _of_json(stream)
    except UnicodeDecodeError:
        raise ManifestError(f"{file}: is no text in UTF-8; expected a list of recordings") from None
    except (OSError, csv.Error) as error:
        raise ManifestError(f"{file}: cannot be read ({words_of(error)})") from None


def _of_json(stream: Any) -> Iterator[tuple[int, dict[str, Any] | _LineError]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            yield number, _LineError(f"is not JSON ({str(error)[:80]}); each line is an object")
            if number == 1:  # something else altogether
                return
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            yield number, _LineError('expected an object such as {"audio": "speech.wav"}')


def _of_csv(file: Path, stream: Any) -> Iterator[tuple[int, dict[str, Any] | _LineError]]:
    rows = csv.reader(stream, strict=True)
    headings = [heading.strip() for heading in next(rows, [])]
    if "audio" not in headings or len(set(headings)) != len(headings):
        raise ManifestError(
            f"{file}: its first line must name the columns ({', '.join(KEYS)}), audio among them"
        )
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(headings):
            yield rows.line_num, _LineError(f"has {len(row)} columns, expected {len(headings)}")
            continue
        values: dict[str, Any] = {
            key: cell for key, cell in zip(headings, row, strict=True) if cell.strip()
        }
        frame = values.get("start_frame", "").strip()
        if frame.isascii() and frame.isdigit() and len(frame) < 10:
            values["start_frame"] = int(frame)
        yield rows.line_num, values


def _recording(
    number: int, values: dict[str, Any], folder: Path, avatar: str, start_frame: int
) -> Recording:
    for key in values:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise _LineError(f"{key[:40]!r} is unknown; {hint}there are {', '.join(KEYS)}")
    try:
        line = msgspec.convert(values, _Line)
    except msgspec.ValidationError as error:
        raise _LineError(str(error).replace("Object", "it").replace(" - at `$.", ": `")) from None
    begin = start_frame if line.start_frame is None else line.start_frame
    if not 0 <= begin < 1 << 31:
        raise _LineError(f"start_frame {begin}: expected 0 or more")
    audio = line.audio
    if not audio.strip() or "\0" in audio:
        raise _LineError("audio: expected a path or a URL")
    if is_url(audio):
        try:
            checked_url(audio)
        except ObjectError as error:
            raise _LineError(f"audio: {error}") from None
        stem = PurePosixPath(unquote(urlsplit(audio).path)).stem
    else:
        audio, stem = str(folder / audio), Path(audio).stem
    return Recording(
        line=number,
        audio=audio,
        avatar=avatar_from(folder, line.avatar) if line.avatar else avatar,
        out=_name(f"{stem}.mp4" if line.out is None else line.out),
        start_frame=begin,
    )


def avatar_from(folder: Path, avatar: str) -> str:
    """An avatar as it is known in any working directory: a path, from a folder on, is absolute."""
    is_path = not is_url(avatar) and ("/" in avatar or avatar.endswith(".lsa"))
    return str(folder / avatar) if is_path else avatar


def _name(out: str) -> str:
    """An output's name, once it is known that it stays in the folder of outputs."""
    parts = out.split("/")
    told = f"out {shown(out)[:80]!r}"
    if not out.lower().endswith(".mp4") or parts[-1].lower() == ".mp4":
        raise _LineError(f"{told}: expected a name that ends in .mp4")
    if not all(parts) or any(part.startswith(".") for part in parts):
        raise _LineError(f"{told}: expected a name within the folder of outputs, none hidden")
    if not out.isprintable() or "\\" in out:
        raise _LineError(f"{told}: has characters that names of outputs may not have")
    if any(len(part.encode(errors="replace")) > NAME_BYTES for part in parts) or len(out) > 1000:
        raise _LineError(f"{told}…: is too long")
    return out


def _folders_that_are_files(recordings: list[Recording], lines: dict[str, int]) -> list[str]:
    """An output cannot be the folder of another one."""
    return [
        f"line {made.line}: the output {str(parent)!r} of line {lines[str(parent)]} would be a"
        " folder and a file"
        for made in recordings
        for parent in PurePosixPath(made.out).parents
        if str(parent) in lines
    ]
