# SPDX-License-Identifier: Apache-2.0
"""The machine stands still for longer than anyone may be silent, as when a laptop is closed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import trio
from serving import Server, server
from talking import SLOW_MACHINE, in_trio, say, speech, spoken, utterance

import lipsync_fast
from lipsync_fast.client import UtteranceStarted

pytestmark = pytest.mark.clock
HUNG_S, STILL_S = 3.0, 8.0
FRAMES = 100
CONFIG = f"""
[avatars]
folders = ["{{folder}}"]
default = "{{name}}"
[engines]
gpus = "none"
spares = 0
hung_s = {HUNG_S}
[live]
speakers = 2
margin_ms = {SLOW_MACHINE["margin_ms"]}
margin_most_ms = {SLOW_MACHINE["margin_most_ms"]}
half_rate = false
"""


def stand_still(run: Server, seconds: float) -> None:
    """Stop all processes of a server, and have them go on together."""
    status = run.status()
    every = [run.process.pid, *(child.pid for child in (*status.engines, *status.fronts))]
    for pid in every:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)  # its clients stand still, too: they are this process
    for pid in every:
        os.kill(pid, signal.SIGCONT)


@in_trio
async def test_sessions_go_on_and_no_engine_is_killed(tiny_avatar: Path) -> None:
    config = CONFIG.format(folder=tiny_avatar.parent, name=tiny_avatar.name)
    with server(config) as run:
        before = await trio.to_thread.run_sync(run.serving, 0)
        async with lipsync_fast.connect(f"ws://127.0.0.1:{before.ports[0]}") as session:
            await say(session, speech(FRAMES / 25))
            async for event in session:
                if isinstance(event, UtteranceStarted):
                    break
            stand_still(run, STILL_S)
            ended, events = await utterance(session, 1)
            # What should have been seen meanwhile may be missing, and is owned up to.
            assert ended.frames == FRAMES
            assert len(spoken(events, 1)) >= 1
            await say(session, speech(1.0))
            ended, events = await utterance(session, 2)
            assert ended.frames == 25
            assert len(spoken(events, 2)) + ended.dropped + ended.left_out >= 25
        after = await trio.to_thread.run_sync(run.serving, 0)
        assert [e.pid for e in after.engines] == [e.pid for e in before.engines]
        assert [f.pid for f in after.fronts] == [f.pid for f in before.fronts]
        assert "hung" not in run.log
        assert "died" not in run.log
        assert "Traceback" not in run.log
        assert run.stop() == 0
