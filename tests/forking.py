# SPDX-License-Identifier: Apache-2.0
"""Commands that need torch, as processes that have it loaded when they begin.

To load torch, and what trains and exports with it, takes five seconds of processor time. One
process does that for all tests; each command is forked off it, and goes on from there as
``python -P -m lipsync_fast`` does, or as a script does: with arguments, a folder, an environment
and files of its own, with signals as a program has them when it starts, and to an end of its own.
How programs start is not in it, so that one test of each command runs a real one.

    python -P forking.py SOCKET
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

PATIENCE_S = 300.0
LOADED = ("torch", "torch._dynamo", "torch.onnx", "onnx", "onnxruntime", "av", "PIL.Image", "typer")
AT_A_START = ("PYTHON", "LD_", "OMP_", "MKL_", "OPENBLAS_", "TORCH")
"""What begins so in an environment is read when Python starts or torch is loaded."""
C = TypeVar("C", bound="Command")


# ---------------------------------------------------------------- in tests
class Command:
    """A command that runs, or has run: of ``subprocess.Popen`` what tests use.

    Attributes:
        pid: its process.
        returncode: as there, and None until it was waited for.
    """

    returncode: int | None = None

    def __init__(self, loaded: socket.socket, order: Mapping[str, Any]) -> None:
        self._end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._said = [tempfile.TemporaryFile() for _ in ("output", "errors")]  # noqa: SIM115
        with theirs:
            fds = [theirs.fileno(), *(file.fileno() for file in self._said)]
            socket.send_fds(loaded, [json.dumps(order).encode()], fds)
        self.pid = self._told(PATIENCE_S)

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        for file in (self._end, *self._said):
            file.close()

    def _told(self, seconds: float | None) -> int:
        self._end.settimeout(seconds)
        return int(self._end.recv(32))

    def poll(self) -> int | None:
        """Its exit status where it has ended, or its signal as a negative number."""
        with contextlib.suppress(BlockingIOError):
            if self.returncode is None:
                self.returncode = self._told(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, once it has ended; TimeoutError where that takes longer."""
        if self.returncode is None:
            self.returncode = self._told(timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has written to its output and to its errors, once it has ended."""
        self.wait(timeout)
        for file in self._said:
            file.seek(0)
        out, err = (file.read().decode() for file in self._said)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send it a signal, where it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)


class Forked:
    """Runs commands.

    Args:
        loaded: where the process that has all loaded takes orders.
    """

    def __init__(self, loaded: socket.socket) -> None:
        self._loaded = loaded

    def start(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        script: Path | None = None,
    ) -> Command:
        """Begin ``lipsync-fast``, or a script, with arguments."""
        env = dict(os.environ if env is None else env)
        for name in env.keys() | os.environ.keys():
            if name.startswith(AT_A_START):
                assert env.get(name) == os.environ.get(name), "it would not be heeded"
        order = {"arguments": [str(each) for each in arguments], "cwd": str(cwd or Path.cwd())}
        return Command(self._loaded, {**order, "env": env, "script": script and str(script)})

    def run(
        self, *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``lipsync-fast`` with arguments."""
        with self.start(*arguments, cwd=cwd, env=env) as command:
            try:
                out, err = command.communicate(PATIENCE_S)
            except BaseException:
                command.kill()
                raise
            return subprocess.CompletedProcess(arguments, command.wait(), out, err)


@contextlib.contextmanager
def forked(folder: Path) -> Iterator[Forked]:
    """Commands of a process in ``folder``; it is started by the first of pytest's processes that
    asks, and ends with the last one."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as loaded,
        open(folder / "forking.lock", "w") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = os.open(folder, os.O_PATH | os.O_DIRECTORY)  # its own path may be too long
        try:
            try:
                loaded.connect(f"/proc/self/fd/{place}/forking")
            except OSError:
                command = [sys.executable, "-P", __file__, "forking"]
                subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, check=True)
                loaded.connect(f"/proc/self/fd/{place}/forking")
        finally:
            os.close(place)
            fcntl.flock(lock, fcntl.LOCK_UN)
        yield Forked(loaded)


# ---------------------------------------------------------------- the process with all loaded
def order_of_mine(path: str) -> dict[str, Any]:
    """Take orders until nobody is left who gives any. Returns in each command, with its order."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    Path(path).unlink(missing_ok=True)
    listening.bind(path)
    listening.listen()
    if os.fork():  # who has started it need not wait for what is loaded
        os._exit(0)
    for name in LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that commands share it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    givers: dict[int, socket.socket] = {}
    while True:
        fd = poll.poll()[0][0]
        if fd == listening.fileno():
            giver, _ = listening.accept()
            givers[giver.fileno()] = giver
            poll.register(giver, select.POLLIN)
            continue
        data, fds, _, _ = socket.recv_fds(givers[fd], 1 << 20, 3)
        if data and os.fork() == 0:
            keep(fds[0])
            for each in (listening, *givers.values()):
                each.detach()
            order: dict[str, Any] = json.loads(data)
            begin(order, *fds[1:])
            return order
        for passed in fds:
            os.close(passed)
        if not data:
            poll.unregister(fd)
            givers.pop(fd).close()
            if not givers:
                os._exit(0)


def keep(end: int) -> None:
    """Fork a command off; tell its number and, when it has ended, how. Returns in the command."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        return
    with socket.socket(fileno=end) as told, contextlib.suppress(BrokenPipeError):
        told.send(str(pid).encode())
        told.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def begin(order: Mapping[str, Any], out: int, err: int) -> None:
    """Be as a program that has just started."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, 1 << 10)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])


if __name__ == "__main__":
    mine = order_of_mine(sys.argv[1])
    sys.argv = [mine["script"] or "lipsync-fast", *mine["arguments"]]
    if mine["script"]:
        sys.path.insert(0, str(Path(mine["script"]).parent))
        runpy.run_path(mine["script"], run_name="__main__")
    else:
        runpy.run_module("lipsync_fast", run_name="__main__", alter_sys=True)
