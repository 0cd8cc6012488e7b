# SPDX-License-Identifier: Apache-2.0
"""What a part is told, and how it runs other programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_check.findings import CannotRunError, Findings

ROOT = Path(__file__).resolve().parents[2]
CUDA_HOMES = ("/usr/local/cuda", "/opt/cuda")


@dataclass(frozen=True)
class Context:
    """A part's surroundings.

    Attributes:
        found: where findings go.
        work: a folder for all parts of a run; what it holds is thrown away.
        wheels: that were brought along.
        dry: do everything but launch.
    """

    found: Findings
    work: Path
    wheels: Path
    dry: bool

    @property
    def site(self) -> Path:
        """Where packages are installed, ours too."""
        return self.work / "site"

    @property
    def avatars(self) -> Path:
        """Where the part ``avatars`` leaves them."""
        return self.work / "avatars"


def tool(name: str) -> str | None:
    """A program of CUDA's, on the path or where CUDA usually lies."""
    found = shutil.which(name)
    if found is not None:
        return found
    homes = [os.environ.get("CUDA_HOME"), *CUDA_HOMES]
    for home in filter(None, homes):
        found = shutil.which(name, path=f"{home}/bin")
        if found is not None:
            return found
    return None


def needed(name: str) -> str:
    """Like ``tool``.

    Raises:
        CannotRunError: it is not there.
    """
    found = tool(name)
    if found is None:
        raise CannotRunError(f"{name} is not installed")
    return found


def run(
    command: Sequence[str | Path],
    limit_s: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> tuple[int | None, str]:
    """Run a program; when its time is over, it and its children are killed.

    Returns:
        Its exit status, None where it was killed; and its output, which is printed, too.
    """
    words = [str(word) for word in command]
    print(f"$ {' '.join(words)}", flush=True)
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=None if env is None else dict(env),
        cwd=cwd,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status = None
    text = output.decode(errors="replace")
    print(text, flush=True)
    return status, text
