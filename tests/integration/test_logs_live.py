# SPDX-License-Identifier: Apache-2.0
"""What all processes of a server write, as a collector reads it, and what a probe is told of it."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
from pathlib import Path
from urllib.request import urlopen

import pytest
from talking import BUSY_MACHINE, in_trio, say, speech, utterance
from variants import put

import lipsync_fast
from lipsync_fast.client.local import LocalServer

pytestmark = pytest.mark.clock
PATIENCE_S = 100.0


def health(server: LocalServer, path: str) -> tuple[int, bytes]:
    try:
        with urlopen(f"{server.http_url}/health/{path}", timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def until_ready(server: LocalServer, wanted: int) -> bytes:
    end = time.monotonic() + PATIENCE_S
    while (found := health(server, "ready"))[0] != wanted:
        assert time.monotonic() < end, f"/health/ready stays {found}"
        assert health(server, "live") == (200, b'{"live":true}')
        time.sleep(0.02)
    return found[1]


@in_trio
async def test_each_line_is_an_object_and_utterances_are_told(
    tiny_avatar: Path, tmp_path: Path
) -> None:
    put(tiny_avatar, tmp_path / "base.lsa")
    config = {
        "avatars": {"default": "base", "folders": [str(tmp_path)]},
        "engines": {"gpus": "none", "spares": 0, "backoff_s": 2.0, **BUSY_MACHINE},
        "log": {"format": "json", "level": "debug"},
    }
    with LocalServer(config) as server:
        async with lipsync_fast.connect(server.url, pace="burst") as session:
            await say(session, speech(0.4))
            await utterance(session, 1)
        [engine] = server.status().engines
        os.kill(engine.pid, signal.SIGKILL)
        assert json.loads(until_ready(server, 503)) == {
            "ready": False,
            "reason": "no engine works",
        }
        until_ready(server, 200)
        server.terminate()
        server.wait(PATIENCE_S)
        log = server.log().splitlines()
    lines = [
        json.loads(line) for line in log if not line.startswith(("page ", "streams ", "stop "))
    ]
    for line in lines:
        assert list(line)[:4] == ["time", "level", "process", "message"]
    assert {"supervisor", "front-1", engine.name} <= {line["process"] for line in lines}
    [told] = [line for line in lines if line["message"] == "an utterance has ended"]
    wanted = {"process": "front-1", "utterance": 1, "avatar": "base", "why": "end", "pictures": 10}
    assert told.items() >= wanted.items()
    assert told["first_ms"] > 0
    assert told["session"] >= 1
    [died] = [line for line in lines if line["message"] == "died; to be replaced"]
    assert died["child"] == engine.name
