# SPDX-License-Identifier: Apache-2.0
"""A server in an unusual environment: IPv6, few open files, a home that is none, another locale."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import trio
from serving import Server, server
from talking import PATIENCE_S, SLOW_MACHINE, assert_whole, speech

import lipsync_fast
from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.client import UtteranceEnded, VideoFrame
from lipsync_fast.errors import SessionError

PATIENCE = f"[live]\nmargin_ms = {SLOW_MACHINE['margin_ms']}\n[engines]\nspares = 0\nhung_s = 60\n"
ODD_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 address of its own."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as one:
        one.bind(("::1", 0))
        return True
    return False


def ports(running: Server) -> tuple[int, int]:
    """Stream and HTTP port."""
    status = running.serving(spares=0)
    return status.ports[0], status.http_port


def begins(url: str) -> bool:
    """Whether a session begins."""

    async def begin() -> bool:
        async with lipsync_fast.connect(url, idle=False, open_timeout=60) as session:
            return bool(session.started.session)

    return trio.run(begin)


def begins_soon(url: str, seconds: float = 60) -> bool:
    """Whether a session begins once the server has noticed that others are gone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(SessionError):
            return begins(url)
        time.sleep(0.1)
    return begins(url)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::", "[::1]"])
def test_ipv6(host: str) -> None:
    with server(f'{PATIENCE}[listen]\nhost = "{host}"\ninsecure = true\n') as running:
        stream, http = ports(running)
        asked = ["[::1]", "127.0.0.1"] if host == "::" else ["[::1]"]
        for name in asked:
            assert begins(f"ws://{name}:{stream}/")
            with urllib.request.urlopen(f"http://{name}:{http}/health", timeout=60) as answer:
                assert answer.status == 200
        running.stop()


def test_where_few_files_may_be_open_clients_are_told_so() -> None:
    held: list[socket.socket] = []
    with server(PATIENCE, open_files=200) as running:
        stream, http = ports(running)
        try:
            for _ in range(260):
                held.append(socket.create_connection(("127.0.0.1", stream), 30))  # noqa: PERF401
            with pytest.raises(SessionError, match=r"503|busy|connected"):
                begins(f"ws://127.0.0.1:{stream}/")
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/health", timeout=60) as answer:
                assert answer.status == 200, "some are left for HTTP"
        finally:
            for each in held:
                each.close()
        assert begins_soon(f"ws://127.0.0.1:{stream}/"), "all is as before"
        assert "clients are turned away" in running.log
        assert "Traceback" not in running.log
        running.stop()


@pytest.mark.parametrize("files", [16, 20, 63])
def test_where_too_few_files_may_be_open_it_says_so_and_ends(files: int) -> None:
    with server(PATIENCE, open_files=files) as running:
        assert running.ended() == 2
        assert running.log == (
            f"error: a process may have {files} files open here (ulimit -n), and a server needs"
            " 64 at least\n"
        )


def test_a_home_that_cannot_be_written_costs_what_is_kept_alone() -> None:
    environ = {"HOME": "/proc/self/nowhere", "LIPSYNC_FAST_UTTERANCES_DISK_MB": "64"}
    config = PATIENCE + '[log]\nformat = "json"\n'
    with server(config, environ=environ) as running:
        stream, _ = ports(running)
        assert begins(f"ws://127.0.0.1:{stream}/")
        running.stop()
        foreign = [line for line in running.log.splitlines() if not line.startswith('{"time":')]
        assert not foreign, "what libraries say of it is nobody's business"
        assert '"level":"error"' not in running.log


def test_names_beyond_ascii_whatever_the_locale(tmp_path: Path) -> None:
    folder = tmp_path / "Grüße"
    folder.mkdir()
    (folder / "Łukasz.lsa").symlink_to(shipped_folder() / "demo.lsa")
    for locale in ({"LC_ALL": "C"}, ODD_LOCALE):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "lipsync_fast", "avatar", "list", "--avatars", folder],
            env={**os.environ, **locale},
            capture_output=True,
            check=True,
        )
        assert "Łukasz" in done.stdout.decode("utf-8")
        assert b"unusable" not in done.stderr


@pytest.mark.clock
@pytest.mark.slow
def test_a_machine_that_stood_still_goes_on_where_it_was() -> None:
    """As when a virtual machine is moved: all processes stop at once, and time goes on."""
    config = f"[live]\nmargin_ms = {SLOW_MACHINE['margin_ms']}\n[engines]\nspares = 0\nhung_s = 5\n"
    with server(config) as running:
        before = running.serving(spares=0)
        pids = [running.process.pid, *(c.pid for c in [*before.engines, *before.fronts])]
        seen: list[VideoFrame] = []
        ended: list[UtteranceEnded] = []

        async def speak() -> None:
            url = f"ws://127.0.0.1:{before.ports[0]}/"
            with trio.fail_after(PATIENCE_S):
                async with lipsync_fast.connect(url, idle=False, open_timeout=60) as session:
                    await session.send(speech(2.0))
                    await session.end_utterance()
                    async for event in session:
                        if isinstance(event, VideoFrame):
                            seen.append(event)
                            if len(seen) == 5:
                                await trio.to_thread.run_sync(stand_still, pids, 7.0)
                        elif isinstance(event, UtteranceEnded):
                            ended.append(event)
                            return

        trio.run(speak)
        after = running.status()
        assert [c.pid for c in [*after.engines, *after.fronts]] == pids[1:], "nobody was killed"
        frames = [event for event in seen if event.utterance > 0]
        assert_whole(ended[0], frames, 50)
        times = [event.pts_us for event in frames]
        assert times == sorted(set(times)), "nothing is shown twice, nothing before its time"
        assert "Traceback" not in running.log
        running.stop()


def stand_still(pids: list[int], seconds: float) -> None:
    """Stop some processes for a while."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
