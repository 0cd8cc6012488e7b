# SPDX-License-Identifier: Apache-2.0
"""A server that is asked for bad avatars: it says why not, and goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from raw_websocket import RawWebSocket
from serving import Server, server
from test_trust_networks import HOSTILE as NETWORKS
from test_trust_packages import HOSTILE as PACKAGES
from trust import change, linked, replace

from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.ipc.status import ServerStatus

CHOSEN = [
    "a pipe as manifest",
    "a device as network",
    "frames of 10 GB",
    "a network of 10 GB that is listed",
    "a JPEG of 65,500 x 65,500",
    "segments that overlap",
    "8,000 members",
    "a key twice",
    "a terminal's commands",
]
LATE = "a JPEG of 65,500 x 65,500"
"""Is found when the picture is needed: the session begins, and gets no frames with speech."""
CONFIG = "[engines]\ngpus = 'none'\nspares = 0\n[live]\nspeakers = 2\n[avatars]\n"


def ask(port: int, avatar: str) -> dict[str, object]:
    """What a client is told that asks for an avatar."""
    with RawWebSocket(f"ws://127.0.0.1:{port}/") as client:
        client.send(json.dumps({"type": "session.start", "avatar": avatar, "idle": False}))
        message = client.receive()
    assert isinstance(message, str)
    told: dict[str, object] = json.loads(message)
    return told


def speaks(port: int, avatar: str = "") -> None:
    """A client that asks for an avatar, speaks, and sees frames."""
    start = {"type": "session.start", "pace": "live", "idle": False}
    with RawWebSocket(f"ws://127.0.0.1:{port}/") as client:
        client.send(json.dumps(start | ({"avatar": avatar} if avatar else {})))
        told = json.loads(str(client.receive()))
        assert told["type"] == "session.started", told
        client.send(b"\x00\x10\x00\xf0" * 8_000)
        while not isinstance(client.receive(), bytes):
            pass


def pids(status: ServerStatus) -> list[int]:
    return [child.pid for child in [*status.engines, *status.fronts]]


def ports(running: Server) -> tuple[int, int]:
    status = running.status()
    return status.ports[0], status.http_port


def test_bad_avatars_in_a_row(tiny_avatar: Path, tmp_path: Path) -> None:
    """Each gets its error; the default avatar is served between them, by the same processes."""
    folder = tmp_path / "avatars"
    for number, case in enumerate(CHOSEN):
        PACKAGES[case][0](linked(tiny_avatar, folder / f"bad-{number}"))
    network = linked(tiny_avatar, folder / "network")
    change(network, "models/decoder.onnx", NETWORKS["external data"][0]().SerializeToString())
    linked(tiny_avatar, folder / "good")
    with server(f"{CONFIG}folders = ['{folder}']\n", environ={"CUDA_VISIBLE_DEVICES": ""}) as it:
        before = pids(it.serving(0))
        port, http_port = ports(it)
        names = [f"bad-{number}" for number in range(len(CHOSEN))]
        for name in [*names, "network", "../good", "x" * 4096, "a\nb", "\u202e", "good\0"]:
            told = ask(port, name)
            if name == f"bad-{CHOSEN.index(LATE)}":
                continue
            assert told["type"] == "error", (name, told)
            assert "\n" not in str(told["message"])
            assert len(str(told["message"])) < 1000
        with RawWebSocket(f"ws://127.0.0.1:{port}/") as client:
            start = {"type": "session.start", "avatar": f"bad-{CHOSEN.index(LATE)}"}
            client.send(json.dumps(start))
            assert json.loads(str(client.receive()))["type"] == "session.started"
            client.send(b"\x00\x10\x00\xf0" * 8_000)
            speaks(port)
            speaks(port, "good")
        with urlopen(f"http://127.0.0.1:{http_port}/v1/avatars", timeout=60) as answer:
            listed = {each["name"] for each in json.load(answer)["avatars"]}
        assert {"demo", "good"} <= listed
        status = it.serving(0)
        assert pids(status) == before, it.log
        assert it.stop() == 0


def test_require_signed(tiny_avatar: Path, tmp_path: Path) -> None:
    """Unsigned, signed by another, changed since: refused with the reason; signed: served."""
    pytest.importorskip("cryptography", reason="the extra sign is not installed")
    from lipsync_fast.avatars.signing import new_key, read_private_key, sign_package

    folder = tmp_path / "avatars"
    signers = {}
    for name in ("ann", "eve"):
        new_key(tmp_path / name)
        signers[name] = read_private_key(tmp_path / name, str)
    for name, signer in (("own", "ann"), ("other", "eve"), ("changed", "ann"), ("late", "ann")):
        sign_package(linked(tiny_avatar, folder / name), signers[signer])
    linked(tiny_avatar, folder / "plain")
    for name in ("frames.bin", "models/image.onnx"):
        raw = bytearray((folder / "changed" / name).read_bytes())
        raw[-1] ^= 1
        replace(folder / "changed" / name, bytes(raw))
    config = f"{CONFIG}folders = ['{folder}']\ndefault = 'own'\n"
    config += f"require_signed = '{tmp_path / 'ann.pub'}'\n"
    with server(config, environ={"CUDA_VISIBLE_DEVICES": ""}) as running:
        before = pids(running.serving(0))
        port, http_port = ports(running)
        for name, word in (
            ("plain", "is not signed"),
            ("demo", "is not signed"),
            ("other", "does not fit"),
            ("changed", "checksum"),
        ):
            told = ask(port, name)
            assert told["type"] == "error", (name, told)
            assert word in str(told["message"]), (name, told)
        for name in ("", "late", "own"):
            speaks(port, name)
        with urlopen(f"http://127.0.0.1:{http_port}/v1/avatars", timeout=60) as answer:
            listed = {each["name"] for each in json.load(answer)["avatars"]}
        assert listed >= {"own", "late"}
        assert not listed & {"plain", "other", "demo"}
        with pytest.raises(HTTPError):
            urlopen(f"http://127.0.0.1:{http_port}/v1/avatars/plain/thumbnail.jpg", timeout=60)
        assert pids(running.serving(0)) == before
        assert running.stop() == 0


def test_a_default_avatar_that_is_not_signed(tmp_path: Path) -> None:
    """No server: one line says why."""
    pytest.importorskip("cryptography", reason="the extra sign is not installed")
    from lipsync_fast.avatars.signing import new_key

    public = new_key(tmp_path / "k")
    for key, words in (
        (public, f"{shipped_folder() / 'demo.lsa'}: is not signed"),
        (tmp_path / "none", "no such key file"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "lipsync_fast", "serve", "--require-signed", str(key)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"LIPSYNC_FAST_FOLDER": str(tmp_path / "run")},
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
