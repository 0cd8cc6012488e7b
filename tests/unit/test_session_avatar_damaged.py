# SPDX-License-Identifier: Apache-2.0
"""An avatar's files are cut short in place while a session shows its own pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import trio
from legacy_world import MemorySocket, World, world

from lipsync_fast.frontend.legacy.service import LegacyService
from lipsync_fast.frontend.listen.connections import Connections
from lipsync_fast_client.protocol import SUBPROTOCOL


class Client(MemorySocket):
    """One that has agreed on lipsync.v1, and reads what it is sent."""

    subprotocol = SUBPROTOCOL
    unsent = False

    def send_now(self, data: str | bytes) -> bool:
        self._to_client.send_nowait(data)
        return True

    async def flush(self) -> None:
        pass

    async def told(self, kind: str) -> dict[str, object]:
        while True:
            said = await self.hear()
            if isinstance(said, str):
                message: dict[str, object] = msgspec.json.decode(said)
                if message["type"] == kind:
                    return message


def joins(w: World, connections: Connections) -> Client:
    client = Client("stream", 40_000)
    client.say('{"type": "session.start"}')
    w.nursery.start_soon(connections.serve, client)
    return client


def test_its_client_is_told_and_the_log_has_one_line(
    tiny_avatar: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_avatar, tmp_path / "tiny")

    async def main() -> None:
        async with world(tmp_path) as w:
            w.nursery.start_soon(w.services.timer.run)
            connections = Connections(w.services, LegacyService(w.services))
            client = joins(w, connections)
            with trio.fail_after(60):
                await client.told("session.started")
                while not isinstance(await client.hear(), bytes):
                    pass
                (tmp_path / "tiny" / "frames.bin").write_bytes(b"")
                error = await client.told("error")
                while client.closed_with is None:
                    await trio.sleep(0.01)
            assert error == {
                "type": "error",
                "code": "unknown_avatar",
                "message": "avatar 'tiny' was damaged while it was in use; name another",
                "fatal": True,
            }
            assert client.closed_with == (1011, "the avatar was damaged")
            assert w.services.statistics.load.sessions == 0

    trio.run(main)
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1, caplog.text
    assert told[0].exc_info is None, "a line, no traceback"
    assert told[0].message.startswith("an avatar fails in use avatar=tiny reason=")
