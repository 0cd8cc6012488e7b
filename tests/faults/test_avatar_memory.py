# SPDX-License-Identifier: Apache-2.0
"""An avatar that needs more memory than an engine may have: refused, and nobody else notices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from raw_websocket import RawWebSocket
from talking import ALONE, SLOW_MACHINE
from tiny import small_manifest

from lipsync_fast.avatars.writer import AvatarWriter
from lipsync_fast.client.local import LocalServer
from lipsync_fast.geometry import Rect

torch = pytest.importorskip("torch", reason="the extra train is not installed")

REGION, WIDTH = 1024, 16
THREADS, MEMORY_MB = 2, 520
"""Each thread takes some 45 MB: with one, a test that counted on two would let the avatar in. With
two, the demo avatar needs some 390 MB, and the large one 900 (850 with one)."""


def write_large(dest: Path) -> Path:
    """A sound avatar whose networks make the largest squares that there are."""
    from lipsync_fast.models.audio_encoder import AudioEncoder
    from lipsync_fast.models.export import export_audio_encoder, export_unet
    from lipsync_fast.models.unet import UNet

    manifest = small_manifest((160, 192), 1, name="large", width=WIDTH, region=REGION)
    with AvatarWriter(dest, manifest) as writer:
        writer.add_frame(np.full((192, 160, 3), 90, np.uint8), Rect(32, 40, 96, 96))
        writer.add_model("audio_encoder", export_audio_encoder(AudioEncoder().eval()))
        image, decoder = export_unet(UNet(width=WIDTH, region=REGION).eval())
        writer.add_model("image", image)
        writer.add_model("decoder", decoder)
        return writer.finish()


def begun(server: LocalServer, **start: object) -> tuple[RawWebSocket, dict[str, object]]:
    client = RawWebSocket(server.url, headers=("Sec-WebSocket-Protocol: x",))
    client.send(json.dumps({"type": "session.start", "idle": False, **start}))
    told: dict[str, object] = json.loads(str(client.receive()))
    return client, told


def test_an_avatar_beyond_the_memory_limit(tmp_path: Path) -> None:
    write_large(tmp_path / "large.lsa")
    config = {
        "avatars": {"folders": [str(tmp_path)]},
        "engines": {**ALONE, "threads": THREADS, "memory_mb": MEMORY_MB},
        "live": SLOW_MACHINE,
    }
    with LocalServer(config) as server:
        before = [engine.pid for engine in server.status().engines]
        told: dict[str, object]
        for _ in range(2):
            told = {"type": "session.overloaded"}
            # A busy machine takes longer than it may, or lets nobody in for a while.
            while told["type"] == "session.overloaded" or told.get("code") == "engine_lost":
                client, told = begun(server, avatar="large")
                client.socket.close()
            assert (told["type"], told.get("code")) == ("error", "unknown_avatar"), told
            assert "large" in str(told["message"])
            client, told = begun(server, pace="burst")
            with client:
                assert told["type"] == "session.started"
                client.send(bytes(32_000))
                client.send(json.dumps({"type": "utterance.end"}))
                while not isinstance(client.receive(), bytes):
                    pass
        assert [engine.pid for engine in server.status().engines] == before
        assert "Traceback" not in server.log()
        assert "cannot be " in server.log()
