# SPDX-License-Identifier: Apache-2.0
"""A server of one's own: ``lipsync-fast serve`` on free ports, for tests, benchmarks and programs.

It ends with the program that has started it, whatever ends that.

>>> with LocalServer() as server:  # doctest: +SKIP
...     async with lipsync_fast.connect(server.url) as session:
...         ...
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq

from lipsync_fast.closing import Closing
from lipsync_fast.errors import LipsyncError, words_of
from lipsync_fast.ipc.control import StatusReply, StatusRequest
from lipsync_fast.ipc.control_socket import Link
from lipsync_fast.ipc.status import ServerStatus, read_status

POLL_S = 0.05
LOG_TAIL = 4000
AFTER = """
read rest
kill $0 && sleep 0.1 && kill $0
tries=0
while kill -0 $0 && [ $tries -lt 100 ] && ! grep -q 'State:.Z' /proc/$0/status; do
    sleep 0.1
    tries=$((tries + 1))
done
kill -KILL $0
until rm -rf "$1" || [ $tries -ge 200 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
"""
"""What is done to a process, and a folder, when the one that waits for it is gone: the second
SIGTERM asks a server to stop at once. Children that end after it may still write into the folder
while it is removed."""


class Tether(Closing):
    """Ends a process when this one is gone, also if it is killed; until closed.

    A shell waits for the end of a pipe that this process holds. (What the kernel can do of itself,
    PR_SET_PDEATHSIG, would count the end of the thread that has started the process.)

    Args:
        pid: the process.
        folder: its own; removed then.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", AFTER, str(pid), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )

    def close(self) -> None:
        """The process has ended: leave it at that."""
        self._shell.kill()
        self._shell.wait()
        assert self._shell.stdin is not None
        self._shell.stdin.close()


class LocalServer(Closing):
    """Starts the server when entered, and stops it when left.

    Args:
        config: as in the server's configuration file: sections (and ``fronts``, ``drain_seconds``)
            by name. Ports are free ones, the folder is a private temporary one, unless given.
        command: what is run as the server, ``--config FILE`` added; ``lipsync-fast serve`` if None.
        start_s: how long it may take until it serves; stop_s: until it has left, then it is killed.

    Raises when entered:
        LipsyncError: it does not start; with the end of its log.

    Attributes:
        url, http_url: where it listens; set once it serves.
        folder: of its control socket.
        log_path: what it writes; gone when it is left.
    """

    url: str
    http_url: str

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        command: Sequence[str] | None = None,
        start_s: float = 60.0,
        stop_s: float = 20.0,
    ) -> None:
        self._command = command or (sys.executable, "-P", "-m", "lipsync_fast", "serve")
        self._config, self._start_s, self._stop_s = config or {}, start_s, stop_s

    # ------------------------------------------------------------ life
    def __enter__(self) -> LocalServer:
        try:
            self._base = Path(tempfile.mkdtemp(prefix="lsf-"))
        except OSError as error:
            raise LipsyncError(f"no folder for a server's files: {words_of(error)}") from None
        self.folder = self._base / "run"
        self.log_path = self._base / "serve.log"
        path = self._base / "serve.toml"
        try:
            path.write_text(self._toml())
            self._log = self.log_path.open("wb")
        except OSError as error:
            shutil.rmtree(self._base, ignore_errors=True)
            raise LipsyncError(f"{path}: cannot be written: {words_of(error)}") from None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        command = [*self._command, "--config", str(path)]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
            )
        except OSError as error:
            self._forget()
            raise LipsyncError(f"{command[0]}: cannot be started: {words_of(error)}") from None
        self._tether = Tether(self.process.pid, self._base)
        try:
            status = self._until_serving()
        except BaseException:
            self.close()
            raise
        host = f"[{status.host}]" if ":" in status.host else status.host
        s = "s" if dict(self._config.get("listen", {})).get("tls_cert") else ""
        self.url = f"ws{s}://{host}:{status.ports[0]}"
        self.http_url = f"http{s}://{host}:{status.http_port}"
        return self

    def close(self) -> None:
        """Stop the server without letting it drain, and remove its folder."""
        for number in (signal.SIGTERM, signal.SIGTERM):  # the second one: at once
            if self.process.poll() is None:
                self.process.send_signal(number)
                time.sleep(POLL_S)
        try:
            self.process.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._tether.close()
        self._forget()

    def _forget(self) -> None:
        self._log.close()
        self._context.term()
        shutil.rmtree(self._base, ignore_errors=True)

    def terminate(self) -> None:
        """Ask it to drain and leave (SIGTERM)."""
        self.process.terminate()

    def wait(self, timeout: float) -> int:
        """Its exit status, once it has left.

        Raises:
            TimeoutError: it has not left in time.
        """
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the server has not left within {timeout:g} s") from None

    # ------------------------------------------------------------ what it says
    @property
    def pid(self) -> int:
        """The supervisor's process."""
        return self.process.pid

    def status(self, timeout: float = 10.0) -> ServerStatus:
        """What ``lipsync-fast status`` says.

        Raises:
            LipsyncError: it does not answer in time.
        """
        name = f"local-{os.getpid()}-{time.monotonic_ns()}"
        link = Link.connect(self._context, self.folder, name)
        try:
            link.send(StatusRequest())
            end = time.monotonic() + timeout
            while (left := end - time.monotonic()) > 0:
                link.socket.poll(max(1, int(min(left, 1.0) * 1000)))
                for message in link.received():
                    if isinstance(message, StatusReply):
                        return read_status(message.status)
                if self.process.poll() is not None:
                    break
        finally:
            link.socket.close(linger=0)
        raise LipsyncError(f"the server does not answer; its log ends:\n{self.log()[-LOG_TAIL:]}")

    def log(self) -> str:
        """What it has written so far."""
        return self.log_path.read_text(errors="replace")

    def _until_serving(self) -> ServerStatus:
        end = time.monotonic() + self._start_s
        while time.monotonic() < end and self.process.poll() is None:
            try:
                status = self.status(1.0)
            except LipsyncError:
                continue
            if status.state == "serving":
                return status
            time.sleep(POLL_S)
        raise LipsyncError(f"the server has not started; its log ends:\n{self.log()[-LOG_TAIL:]}")

    def _toml(self) -> str:
        """The configuration file. JSON's scalars and lists are TOML's too."""
        given = dict(self._config)
        listen = {"ports": [0], "http_port": 0} | dict(given.pop("listen", {}))
        sections = {"listen": listen} | {n: v for n, v in given.items() if isinstance(v, Mapping)}
        top = {"folder": str(self.folder)} | {
            n: v for n, v in given.items() if not isinstance(v, Mapping)
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in top.items()]
        for section, values in sections.items():
            lines.append(f"\n[{section}]")
            lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        return "\n".join(lines) + "\n"
