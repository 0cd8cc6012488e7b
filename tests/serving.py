# SPDX-License-Identifier: Apache-2.0
"""A server in processes of its own, for tests: started, asked, always stopped."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from lipsync_fast.cli.status import ControlClient
from lipsync_fast.client.local import Tether
from lipsync_fast.errors import ServerError
from lipsync_fast.ipc.status import ServerStatus

T = TypeVar("T")
PATIENCE_S = 60.0
"""Generous: what a test waits for comes at once, but for a machine that is busy."""
STAND_IN = Path(__file__).with_name("stand_in.py")
POSING = Path(__file__).with_name("posing.py")


def until(found: Callable[[], T | None], what: str = "") -> T:
    """Wait until something is there: neither None, nor False, nor empty."""
    end, pause = time.monotonic() + PATIENCE_S, 0.005
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(pause)  # longer and longer: who asks without a pause takes a processor
        pause = min(1.2 * pause, 0.04)
    raise AssertionError(f"waited {PATIENCE_S:g} s in vain {what}")


class Server:
    """``lipsync-fast serve``, or the same with stand-ins for its children.

    Args:
        config: the text of its configuration; ports are free ones, and the folder is private,
            unless it says otherwise.
        stand_in: options of the stand-ins, or None for real children.
        posing: devices that CPU engines pose as (posing.py); none where 0.
        file_bytes: the largest file that it may make.
        open_files: how many each of its processes may have open.
    """

    def __init__(
        self,
        config: str = "",
        stand_in: dict[str, Any] | None = None,
        *,
        folder: Path | None = None,
        ports: tuple[int, int] = (0, 0),
        environ: dict[str, str] | None = None,
        posing: int = 0,
        file_bytes: int | None = None,
        open_files: int | None = None,
    ) -> None:
        # Not pytest's folder: the path of a Unix socket must be short.
        self.base = Path(tempfile.mkdtemp(prefix="lipsync-"))
        self.folder = folder or self.base / "run"
        self.notes_folder = self.base / "notes"
        self.notes_folder.mkdir()
        file = self.base / "server.toml"
        file.write_text(f"folder = {json.dumps(str(self.folder))}\n{_with_ports(config, ports)}")
        command = [sys.executable, "-P", "-m", "lipsync_fast", "serve", "--config", str(file)]
        self.environ = {**os.environ, **(environ or {})}
        if stand_in is not None:
            command = [sys.executable, "-P", str(STAND_IN), "serve", str(file)]
            options = {"folder": str(self.notes_folder), **stand_in}
            self.environ["STAND_IN"] = json.dumps(options)
        if posing:
            command = [sys.executable, "-P", str(POSING), "serve", str(file), str(posing)]
        if file_bytes is not None:
            command = ["prlimit", f"--fsize={file_bytes}", "--", *command]
        if open_files is not None:
            command = ["prlimit", f"--nofile={open_files}:{open_files}", "--", *command]
        with open(self.base / "log", "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stderr=log, env=self.environ
            )
        self._tether = Tether(self.process.pid, self.base)  # a test that is killed leaves none
        self.seen: set[int] = {self.process.pid}

    # ------------------------------------------------------------ asking
    @property
    def log(self) -> str:
        """What the server and its children have written."""
        return (self.base / "log").read_text(errors="replace")

    def status(self) -> ServerStatus:
        """The status now; raises ServerError where there is no server."""
        with ControlClient(self.folder) as client:
            status = client.status()
        self.seen |= {child.pid for child in [*status.engines, *status.fronts]}
        return status

    def when(self, found: Callable[[ServerStatus], T | None], what: str = "") -> T:
        """Wait until the status is as wanted; gives what was found in it."""

        def look() -> T | None:
            assert self.process.poll() is None, f"the server has ended: {self.log}"
            with contextlib.suppress(ServerError):
                return found(self.status())
            return None

        try:
            return until(look, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def serving(self, spares: int = 1) -> ServerStatus:
        """Wait until all children are ready."""
        return self.when(
            lambda s: (
                s
                if s.state == "serving"
                and sum(e.state == "spare" for e in s.engines) == spares
                and all(e.state in ("ready", "spare") for e in s.engines)
                and all(f.state == "ready" for f in s.fronts)
                else None
            ),
            "until all is ready",
        )

    # ------------------------------------------------------------ stand-ins
    def notes(self, name: str, kind: str = "") -> list[dict[str, Any]]:
        """What a stand-in has noted, of a kind where given."""
        try:
            lines = (self.notes_folder / f"{name}.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        notes = [json.loads(line) for line in lines if line.endswith("\n")]
        return [note for note in notes if not kind or note["kind"] == kind]

    def order(self, name: str, **order: object) -> None:
        """Tell a stand-in to do something."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.sendto(json.dumps(order).encode(), str(self.notes_folder / f"{name}.do"))

    # ------------------------------------------------------------ ending
    def signal(self, number: int) -> None:
        """Send the supervisor a signal."""
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for the supervisor's end; its exit status."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server does not end\n{self.log}") from None

    def stop(self) -> int:
        """Stop it in order, and see that nothing is left."""
        if self.process.poll() is None:
            with contextlib.suppress(ServerError):
                self.status()
            self.signal(signal.SIGTERM)
        status = self.ended()
        self.nothing_is_left()
        return status

    def nothing_is_left(self) -> None:
        """No process of it lives, and its folder is gone."""
        until(lambda: not any(map(lives, self.seen)), "until its processes are gone")
        assert not self.folder.exists()

    def close(self) -> None:
        """End whatever still lives, and remove its files."""
        for name in self.notes_folder.glob("*.jsonl"):
            self.seen |= {note["pid"] for note in self.notes(name.stem, "born")}
        for pid in self.seen:
            if lives(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._tether.close()
        warned = warnings_in(self.log)
        shutil.rmtree(self.base)
        assert not warned, warned


def warnings_in(log: str) -> list[str]:
    """Lines in which Python has warned of something."""
    return re.findall(r"^.*\.py:\d+: \w*Warning: .*$", log, re.MULTILINE)


def lives(pid: int) -> bool:
    """Whether a process runs (one that has died and was not reaped does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def _with_ports(config: str, ports: tuple[int, int]) -> str:
    mine = f"ports = [{ports[0]}]\nhttp_port = {ports[1]}\n"
    if "[listen]" in config:
        return config.replace("[listen]\n", "[listen]\n" + mine, 1)
    return f"{config}\n[listen]\n{mine}"


@contextlib.contextmanager
def server(*args: Any, **named: Any) -> Iterator[Server]:
    """A server that is stopped whatever happens."""
    made = Server(*args, **named)
    try:
        yield made
    finally:
        made.close()
