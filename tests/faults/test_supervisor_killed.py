# SPDX-License-Identifier: Apache-2.0
"""The supervisor is killed: its children end with it, whatever they do at that moment."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

from talking import ALONE

from lipsync_fast.client.local import LocalServer

DEADLINE_S = 60.0


def test_children_that_stand_still_end_with_it() -> None:
    with LocalServer({"engines": ALONE}) as server:
        status = server.status()
        pids = [child.pid for child in (*status.fronts, *status.engines)]
        ends = [os.pidfd_open(pid) for pid in pids]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        server.process.kill()
        server.process.wait(DEADLINE_S)
        left = []
        for pid, end in zip(pids, ends, strict=True):
            poll = select.poll()
            poll.register(end, select.POLLIN)
            if not poll.poll(int(DEADLINE_S * 1000)):
                left.append(pid)
                os.kill(pid, signal.SIGKILL)
            os.close(end)
        assert not left


def test_who_is_born_after_its_death_does_nothing() -> None:
    command = [sys.executable, "-P", "-m", "lipsync_fast.ipc.birth", "0", "no.such.module"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"")
