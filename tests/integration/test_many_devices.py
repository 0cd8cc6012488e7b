# SPDX-License-Identifier: Apache-2.0
"""Four engines behind one supervisor, each on its own device: CPU engines that pose as GPUs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from raw_websocket import RawWebSocket
from serving import Server, server, until

import lipsync_fast

DEMO = Path(lipsync_fast.__file__).parent / "data" / "avatars" / "demo.lsa"
COUNT = 4


def start(port: int, avatar: str = "demo") -> RawWebSocket:
    """A session that gets all frames, each as soon as it is made."""
    client = RawWebSocket(f"ws://127.0.0.1:{port}/")
    client.send(json.dumps({"type": "session.start", "pace": "burst", "avatar": avatar}))
    assert next_text(client)["type"] == "session.started"
    return client


def next_text(client: RawWebSocket) -> dict[str, Any]:
    """The next message that is no picture."""
    while not isinstance(message := client.receive(), str):
        pass
    told: dict[str, Any] = json.loads(message)
    return told


def speak(client: RawWebSocket, seconds: float) -> None:
    """A tone of so long, to its end."""
    client.send(b"\x00\x10\x00\xf0" * int(8_000 * seconds))
    client.send('{"type": "utterance.end"}')


def frames(client: RawWebSocket) -> int:
    """Pictures until the utterance's end, which tells of as many."""
    got = 0
    while True:
        message = client.receive()
        if isinstance(message, bytes):
            got += 1
        elif (told := json.loads(message))["type"] == "utterance.ended":
            assert told["frames"] == got
            return got


def all_have_worked(running: Server, clients: list[RawWebSocket]) -> bool:
    """Whether all engines have made frames, when each client has spoken once more."""
    for client in clients:
        speak(client, 1.0)
    assert [frames(client) for client in clients] == [25] * len(clients)
    return all(engine.load.made for engine in running.status().engines)


def test_sessions_spread_over_devices_and_outlive_one(tmp_path: Path) -> None:
    shutil.copy(DEMO, tmp_path / "anna.lsa")
    config = f"[engines]\nspares = 0\n[live]\nspeakers = 8\n[avatars]\nfolders = ['{tmp_path}']\n"
    with server(config, posing=COUNT) as running:
        status = running.serving(spares=0)
        assert [e.device for e in status.engines] == [f"cuda:{n}" for n in range(COUNT)]
        assert all(e.capacity > 0 for e in status.engines)
        # An avatar that somebody asks for is loaded by all of them.
        clients = [start(status.ports[0], "anna") for _ in range(COUNT)]
        running.when(lambda s: all("anna" in e.avatars for e in s.engines) or None)
        # Each gets a part of the work, once the front has heard of all.
        until(lambda: all_have_worked(running, clients))
        for client in clients:
            speak(client, 1.0)
        # One device is lost while they speak: its jobs are done by others, and nothing is missing.
        victim = next(e for e in running.status().engines if e.device == "cuda:2")
        os.kill(victim.pid, signal.SIGKILL)
        assert [frames(client) for client in clients] == [25] * COUNT
        after = running.serving(spares=0)
        again = next(e for e in after.engines if e.device == "cuda:2")
        assert (again.slot, again.restarts) == (victim.slot, 1)
        assert again.avatars == ["anna", "demo"]
        assert again.reason == "signal 9", "until it has worked for a while"
        assert [e.restarts for e in after.engines if e is not again] == [0] * (COUNT - 1)
        for client in clients:
            client.socket.close()
        assert running.stop() == 0
