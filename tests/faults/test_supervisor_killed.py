# SPDX-License-Identifier: Apache-2.0
"""The supervisor is killed, or the program that has started it: what was started ends with it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from serving import until
from talking import ALONE

from lipsync_fast.client.local import LocalServer
from lipsync_fast.errors import LipsyncError

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


HOLDER = """
import sys
from lipsync_fast.client.local import LocalServer
from talking import ALONE

with LocalServer({"engines": ALONE}) as server:
    print(server.pid, server.folder.parent, flush=True)
    sys.stdin.read()
"""


def test_a_server_ends_with_the_program_that_has_started_it() -> None:
    """Killed, that program can stop nothing itself."""
    command = [sys.executable, "-P", "-c", HOLDER]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    program = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    )
    with program:
        assert program.stdout is not None
        pid, folder = program.stdout.readline().split()
        end = os.pidfd_open(int(pid))
        program.kill()
    poll = select.poll()
    poll.register(end, select.POLLIN)
    has_ended = poll.poll(int(DEADLINE_S * 1000))
    if not has_ended:
        os.kill(int(pid), signal.SIGKILL)
    os.close(end)
    assert has_ended, "the server outlives it"
    until(lambda: not Path(folder).exists(), "until its folder is removed")


def test_a_server_that_cannot_be_started_is_named() -> None:
    with (
        pytest.raises(LipsyncError, match=r"^/no/such/server: cannot be started: No such file"),
        LocalServer(command=["/no/such/server"]),
    ):
        pass
