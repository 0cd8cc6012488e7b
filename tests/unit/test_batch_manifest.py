# SPDX-License-Identifier: Apache-2.0
"""Lists of recordings: all that is wrong with one is told before anything is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast.batch.manifest import Recording, read_manifest
from lipsync_fast.errors import ManifestError


def read(tmp_path: Path, text: str | bytes, name: str = "list.jsonl") -> list[Recording]:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_manifest(file, "anna", 3)


def lines(*objects: object) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


def test_json_lines_and_csv_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"audio": "in/a b.wav"},
        {"audio": "/abs/c.mp3", "avatar": "bob", "out": "deep/c.mp4", "start_frame": 7},
        {"audio": "https://host/x/d%20e.wav?sig=secret"},
    ]
    got = read(tmp_path, "\n" + lines(*rows))
    assert got == [
        Recording(
            line=2, audio=str(tmp_path / "in/a b.wav"), avatar="anna", out="a b.mp4", start_frame=3
        ),
        Recording(line=3, audio="/abs/c.mp3", avatar="bob", out="deep/c.mp4", start_frame=7),
        Recording(
            line=4,
            audio="https://host/x/d%20e.wav?sig=secret",
            avatar="anna",
            out="d e.mp4",
            start_frame=3,
        ),
    ]
    text = (
        "\ufeffout,audio,avatar,start_frame\n"
        ",in/a b.wav,,\n"
        "deep/c.mp4,/abs/c.mp3,bob,7\n"
        ",https://host/x/d%20e.wav?sig=secret,,\n"
    )
    assert read(tmp_path, text, "list.csv") == got


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no recordings"),
        ("\n \n", "holds no recordings"),
        ("RIFF....WAVE", "line 1: is not JSON"),
        (b"\xff\xfe\x00", "is no text in UTF-8"),
        (lines(["a.wav"]), "line 1: expected an object"),
        (lines({}), "line 1: it missing required field `audio`"),
        (lines({"audio": 3}), "line 1: Expected `str`, got `int`"),
        (lines({"audio": "  "}), "audio: expected a path or a URL"),
        (lines({"audio": "a\0b"}), "audio: expected a path or a URL"),
        (lines({"audio": "ftp://h/a.wav"}), "expected one of s3://"),
        (lines({"audio": "https://me:pw@h/a.wav"}), "credentials do not belong into a URL"),
        (lines({"audio": "a.wav", "avatr": "x"}), "did you mean avatar?"),
        (lines({"audio": "a.wav", "start_frame": -1}), "start_frame -1: expected 0 or more"),
        (lines({"audio": "a.wav", "start_frame": "x"}), "Expected `int"),
        (lines({"audio": "a.wav", "out": "a.wav"}), "ends in .mp4"),
        (lines({"audio": "a.wav", "out": ".mp4"}), "ends in .mp4"),
        (lines({"audio": "a.wav", "out": "../a.mp4"}), "within the folder"),
        (lines({"audio": "a.wav", "out": "b/../../a.mp4"}), "within the folder"),
        (lines({"audio": "a.wav", "out": "/tmp/a.mp4"}), "within the folder"),
        (lines({"audio": "a.wav", "out": "b//a.mp4"}), "within the folder"),
        (lines({"audio": "a.wav", "out": ".batch/a.mp4"}), "within the folder"),
        (lines({"audio": "a.wav", "out": "a\nb.mp4"}), "characters"),
        (lines({"audio": "a.wav", "out": "ä" * 101 + ".mp4"}), "too long"),
        (lines({"audio": "a.wav"}, {"audio": "b/a.mp3"}), "line 2: the output 'a.mp4' is line 1's"),
        (
            lines({"audio": "a.wav", "out": "d.mp4/a.mp4"}, {"audio": "d.wav"}),
            "would be a folder and a file",
        ),
        (lines(*[{"audio": ""}] * 9), "; and 4 more"),
    ],
)
def test_what_cannot_be_is_told_by_its_line(tmp_path: Path, text: str | bytes, why: str) -> None:
    with pytest.raises(ManifestError) as error:
        read(tmp_path, text)
    assert why in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "list.jsonl"))
    assert "\n" not in str(error.value)
    assert "pw" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "its first line must name the columns"),
        ("a.wav\nb.wav\n", "its first line must name the columns"),
        ("audio,audio\na,b\n", "its first line must name the columns"),
        ("audio,out\na.wav\n", "line 2: has 1 columns, expected 2"),
        ('audio\n"a.wav\n', "cannot be read"),
        ("audio\n", "holds no recordings"),
    ],
)
def test_what_is_no_csv(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ManifestError, match=why):
        read(tmp_path, text, "list.csv")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="is no file"):
        read_manifest(tmp_path)


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_stays_in_its_folder(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "garbage.jsonl"
    file.write_bytes(data)
    try:
        found = read_manifest(file)
    except ManifestError:
        return
    assert all(".." not in each.out and not each.out.startswith("/") for each in found)
