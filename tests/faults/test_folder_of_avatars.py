# SPDX-License-Identifier: Apache-2.0
"""Whatever lies in a folder of avatars is data: named, refused in one line, nobody else's matter.

Packages are damaged in any way, put into the folder of a running server, and asked for by all ways.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import struct
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_websocket import RawWebSocket
from talking import ALONE

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.client.local import LocalServer
from lipsync_fast.errors import AvatarFormatError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "fuzzing"))
from targets import small_package

NATIVE = ("Sec-WebSocket-Protocol: x",)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "drop", "zero", "number"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def without_a_name() -> bytes:
    """A .lsa with a member that has no name: Python's zipfile fails over it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("X", b"")
    data = bytearray(out.getvalue())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 28 : entry + 30] = b"\0\0"
    del data[entry + 46]
    end = data.rindex(b"PK\x05\x06")
    data[end + 12 : end + 16] = struct.pack("<I", 46)
    return bytes(data)


def mutated(data: bytes, edits: list[tuple[str, float, int, bool]]) -> bytes:
    """The bytes, changed here and there; half of the changes where the zip's directory lies."""
    out = bytearray(data)
    for how, where, value, late in edits:
        first = max(0, len(out) - 1200) if late else 0
        at = first + int(where * (len(out) - first))
        if how == "flip" and out:
            out[at] ^= 1 << value % 8
        elif how == "cut":
            del out[at:]
        elif how == "insert":
            out[at:at] = bytes([value]) * (1 + value % 9)
        elif how == "drop":
            del out[at : at + 1 + value % 9]
        elif how == "zero":
            out[at : at + 4] = bytes(len(out[at : at + 4]))
        elif how == "number":
            out[at : at + 4] = struct.pack("<I", 0xFFFF_FFFF >> value % 32)[: len(out[at : at + 4])]
    return bytes(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("avatars")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LocalServer]:
    (folder / "unnamed.lsa").write_bytes(without_a_name())
    config = {"avatars": {"folders": [str(folder)]}, "engines": ALONE}
    with LocalServer(config) as server:
        before = server.status()
        yield server
        after = server.status()
        assert [e.pid for e in after.engines] == [e.pid for e in before.engines]
        assert [f.pid for f in after.fronts] == [f.pid for f in before.fronts]
        assert all(f.load.errors.get("internal", 0) == 0 for f in after.fronts)
        assert "Traceback" not in server.log()


def get(server: LocalServer, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.http_url).netloc, timeout=60)
    with closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def told(server: LocalServer, message: dict[str, object]) -> dict[str, object]:
    """What a client is told first."""
    with RawWebSocket(server.url, headers=NATIVE) as client:
        client.send(json.dumps(message))
        found: dict[str, object] = json.loads(str(client.receive()))
        return found


def refused_or_served(server: LocalServer, name: str) -> None:
    """An avatar is either there or refused in words, whichever way it is asked for."""
    part = quote(name, safe="")
    for path in (f"/v1/avatars/{part}", f"/v1/avatars/{part}/thumbnail.jpg"):
        status, body = get(server, path)
        assert status in (200, 404), (path, status, body)
        if status == 404:
            assert json.loads(body)["error"]
            assert b"/tmp" not in body, body
    said = told(server, {"type": "session.start", "avatar": name, "idle": False})
    if said["type"] != "session.started":
        assert (said["type"], said["code"]) == ("error", "unknown_avatar"), said
        assert "\n" not in str(said["message"])
        assert "/" not in str(said["message"]).replace("models/", ""), "it tells no folder"
        assert "internal" not in str(said["message"])


def test_a_member_without_a_name(server: LocalServer, folder: Path) -> None:
    with pytest.raises(AvatarFormatError, match="is not a plain name"):
        AvatarPackage.open(folder / "unnamed.lsa")
    found = {a.name: a for a in AvatarLibrary([folder]).list()}
    assert "is not a plain name" in str(found["unnamed"].error)
    assert found["demo"].error is None
    refused_or_served(server, "unnamed")
    assert get(server, "/v1/avatars/unnamed")[0] == 404
    status, body = get(server, "/v1/avatars")
    assert (status, "demo" in [a["name"] for a in json.loads(body)["avatars"]]) == (200, True)
    models = told(server, {"type": "get_models"})
    assert "demo" in json.dumps(models)
    assert told(server, {"type": "session.start"})["type"] == "session.started"


SHOWN = ["a%2fb", "a?b#c", "é", " ", "-rf", "<img src=x onerror=alert(1)>", "con\\x", "x" * 200]
HIDDEN = [b"a\nb", b"\xff\xfe", b"a\x1b[31m", "\u202eevil".encode(), b"x" * 250]


def test_odd_names_are_names_or_are_not_shown(server: LocalServer, folder: Path) -> None:
    """Links to those that are listed work; what cannot be seen is not listed, and hurts nobody."""
    for name in [*(os.fsencode(name) for name in SHOWN), *HIDDEN]:
        Path(os.path.join(folder, os.fsdecode(name + b".lsa"))).write_bytes(small_package())
    end = time.monotonic() + 60
    listed: dict[str, dict[str, str]] = {}
    while not listed.keys() >= set(SHOWN):  # a list is believed for two seconds
        assert time.monotonic() < end, listed.keys()
        listed = {a["name"]: a for a in json.loads(get(server, "/v1/avatars")[1])["avatars"]}
    assert all(name.isprintable() for name in listed)
    for name in SHOWN:
        assert get(server, listed[name]["thumbnail"])[0] == 200, name
        assert get(server, f"/v1/avatars/{quote(name, safe='')}")[0] == 200, name
        refused_or_served(server, name)
    for raw in HIDDEN:
        assert get(server, f"/v1/avatars/{quote(raw, safe='')}")[0] == 404
    assert get(server, "/metrics")[0] == 200


@settings(max_examples=40, derandomize=True)
@given(edits=EDITS)
def test_packages_that_are_damaged_in_any_way(
    server: LocalServer, folder: Path, edits: list[tuple[str, float, int, bool]]
) -> None:
    (folder / "damaged.lsa").write_bytes(mutated(small_package(), edits))
    refused_or_served(server, "damaged")
    assert get(server, "/v1/avatars/demo")[0] == 200


def test_what_is_unforeseen_is_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect of a reader makes one avatar unusable, and says so; no more."""
    (tmp_path / "one.lsa").write_bytes(small_package())

    def fails(*_: object) -> None:
        raise IndexError("string index\nout of range")

    monkeypatch.setattr("lipsync_fast.avatars.frames.check_rects", fails)
    with pytest.raises(AvatarFormatError) as caught:
        AvatarPackage.open(tmp_path / "one.lsa")
    assert str(caught.value).endswith("is damaged (IndexError: string index out of range)")


def test_a_body_that_is_no_utf_8_is_a_bad_request(server: LocalServer) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.http_url).netloc, timeout=60)
    with closing(connection):
        connection.request("POST", "/v1/avatars/x", body=b'{"path":"\xff"}')
        answer = connection.getresponse()
        assert (answer.status, b"cannot be read" in answer.read()) == (400, True)


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_package_that_is_cut_short_while_it_is_shown(
    server: LocalServer, folder: Path, size: int
) -> None:
    path = folder / f"cut-{size}.lsa"
    path.write_bytes(small_package())
    assert get(server, f"/v1/avatars/cut-{size}/thumbnail.jpg")[0] == 200
    with path.open("r+b") as file:
        file.truncate(size)
    refused_or_served(server, f"cut-{size}")
