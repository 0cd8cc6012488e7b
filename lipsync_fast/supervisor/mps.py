# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's Multi-Process Service: engines that share a GPU run their kernels at the same time.

    a daemon runs where CUDA_MPS_PIPE_DIRECTORY says (or in its usual place): it is used, and left
    none does: one is started in the server's private folder, and ends with the server

Nothing of the card's settings is changed: not its compute mode, which an administrator may set to
EXCLUSIVE_PROCESS where MPS alone is to reach it.

Our daemon is held by a shell that reads from a pipe of this process. When that ends, however this
process does, the shell tells the daemon to quit, and then ends all of its process group.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lipsync_fast.errors import ServerError
from lipsync_fast.logs import get_logger
from lipsync_fast.supervisor.gpus import ORDER, VISIBLE

log = get_logger("lipsync.supervisor")
CONTROL = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
USUAL = "/tmp/nvidia-mps"
FOLDER = "mps"
"""The daemon's, in the server's private folder."""
START_S, ANSWER_S, QUIT_S = 10.0, 5.0, 5.0
KEEPER = """
trap '' INT HUP
{ "$0" -f </dev/null; kill -KILL 0; } &
read -r _
echo quit | timeout 2 "$0" >/dev/null 2>&1
trap '' TERM
kill -TERM 0
sleep 0.2
kill -KILL 0
"""
"""Runs the daemon ($0) until standard input ends. Its process group has the daemon, its servers and
nobody else in it: they all end with the daemon."""


@dataclass
class Mps:
    """A daemon that engines reach by ``environ``; made by ``use``.

    Attributes:
        environ: to be added to an engine's environment.
        folder: of a daemon that is ours; None of one that is used and left running.
    """

    environ: dict[str, str]
    folder: Path | None = None
    _keeper: subprocess.Popen[bytes] | None = None

    @classmethod
    def use(cls, folder: Path, environ: Mapping[str, str] = os.environ) -> Mps:
        """Use the daemon that runs, or start one.

        Args:
            folder: the server's private folder.

        Raises:
            ServerError: there is no such program, or it does not start.
        """
        program = shutil.which(CONTROL, path=environ.get("PATH"))
        if program is None:
            raise ServerError(
                f"engines.mps: {CONTROL} was not found; it comes with the NVIDIA driver "
                "(nvidia-utils, or nvidia-compute-utils); without it, leave engines.mps off"
            )
        pipes = environ.get(PIPES, USUAL)
        if os.path.isdir(pipes) and _answers(program, {**environ, PIPES: pipes}):
            log.info("uses the MPS daemon that runs, and leaves it running", folder=pipes)
            return cls({PIPES: pipes})
        return cls._start(program, folder / FOLDER, environ)

    @classmethod
    def _start(cls, program: str, folder: Path, environ: Mapping[str, str]) -> Mps:
        remove(folder)
        folders = {PIPES: str(folder / "pipes"), LOGS: str(folder / "logs")}
        for path in folders.values():
            os.makedirs(path, 0o700)
        # It sees all GPUs in the order that ours are numbered in: its clients' numbers are its own.
        clean = {name: value for name, value in environ.items() if name != VISIBLE}
        own = {**clean, **folders, ORDER: "PCI_BUS_ID"}
        with open(folder / "output", "wb") as output:
            keeper = subprocess.Popen(
                ["/bin/sh", "-c", KEEPER, program],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=own,
                start_new_session=True,
            )
        made = cls(folders, folder, keeper)
        until = time.monotonic() + START_S
        while not _answers(program, own):
            if time.monotonic() > until or keeper.poll() is not None:
                last = (folder / "output").read_text(errors="replace").strip().rpartition("\n")[2]
                made.close()
                raise ServerError(f"engines.mps: {CONTROL} does not start: {last or 'no reason'}")
            time.sleep(0.05)
        log.info("started an MPS daemon, which ends with this server", folder=folder)
        return made

    def close(self) -> None:
        """End the daemon, where it is ours; once all that use it have ended."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        assert keeper.stdin is not None
        keeper.stdin.close()
        try:
            keeper.wait(QUIT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(keeper.pid, signal.SIGKILL)
            keeper.wait()
        if self.folder is not None:
            remove(self.folder)
        log.info("ended the MPS daemon")


def remove(folder: Path) -> None:
    """Remove what a daemon of ours has left."""
    shutil.rmtree(folder, ignore_errors=True)


def _answers(program: str, environ: Mapping[str, str]) -> bool:
    """Whether a daemon answers there."""
    try:
        done = subprocess.run(
            [program],
            input=b"get_server_list\n",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(environ),
            timeout=ANSWER_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
