# SPDX-License-Identifier: Apache-2.0
"""Boots systemd in a root that ``bare_root`` has made, and lets it run the hardened unit.

What ``lipsync-fast systemd --install`` writes is started by a real systemd (systemd-nspawn, of
Debian's systemd-container): by its own user, behind its filter of calls of the system. Clients talk
to it, it is reloaded, stopped in the middle of its loop so that the watchdog must act, and stopped.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bare_root import Builder, Image
from dockerfile import Step
from trial import TrialError, checklist, client

UNIT = "lipsync-fast"
TOKEN = "sesame-open-for-the-trial"
BOOTED_S = 150.0
INSTALL = f"""apt-get update -qq \
&& apt-get install -y -qq --no-install-recommends systemd dbus >/dev/null \
&& rm -rf /var/lib/apt/lists/* && userdel lipsync && rm -rf /var/lib/lipsync-fast \
&& : > /etc/machine-id && echo LIPSYNC_FAST_LISTEN_TOKEN={TOKEN} > /etc/lipsync-fast.env \
&& echo LIPSYNC_FAST_LISTEN_GRPC_PORTS=50051 >> /etc/lipsync-fast.env \
&& chmod 0600 /etc/lipsync-fast.env \
&& env -u LIPSYNC_FAST_LISTEN_HOST -u LIPSYNC_FAST_AVATARS lipsync-fast systemd --install \
&& systemctl enable lipsync-fast"""
"""What an operator does on a machine that has the package in /opt/lipsync."""


def there() -> bool:
    """Whether systemd-nspawn is installed here."""
    return shutil.which("systemd-nspawn") is not None


class Booted:
    """A system with systemd as its first process."""

    def __init__(self, builder: Builder, image: Image) -> None:
        machine = replace(image, user="", layers=list(image.layers), sizes=[])
        builder.step(machine, Step(0, "RUN", {}, INSTALL))
        upper = builder.work / "layers" / "booted"
        shutil.rmtree(upper, ignore_errors=True)
        upper.mkdir()
        self._log = builder.work / "boot.log"
        command = ["systemd-nspawn", f"--directory={builder.work}/mnt", "--boot", "--register=no"]
        command += ["--keep-unit", "--private-network", "--console=pipe"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                builder.over(machine, upper, command), stdout=log, stderr=log
            )
        self.pid = 0

    def execute(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in it as root."""
        inside = ["nsenter", "-t", str(self.pid), "-a"]
        return subprocess.run(
            [*inside, *command], capture_output=True, text=True, timeout=90, check=False
        )

    def is_up(self) -> bool:
        """Whether its first process is systemd; from then on, ``pid`` is it, as we count."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(OSError):  # between two looks, processes come and go
            for child in children.read_text().split():
                if Path(f"/proc/{child}/exe").readlink().name == "systemd":
                    self.pid = int(child)
        return self.pid != 0

    def shown(self, name: str) -> str:
        """A property of the unit."""
        asked = ["systemctl", "show", f"--property={name}", "--value", UNIT]
        return self.execute(asked).stdout.strip()

    def until(self, found: Callable[[], bool], what: str) -> None:
        """Wait until something is so."""
        end = time.monotonic() + BOOTED_S
        while not found():
            if self.process.poll() is not None or time.monotonic() > end:
                asked = ["journalctl", "--no-pager", "-n", "40", "-u", UNIT]
                said = self.execute(asked).stdout if self.pid else ""
                raise TrialError(f"never: {what}\n{said}\n{self._log.read_text(errors='replace')}")
            time.sleep(0.5)

    def end(self) -> None:
        """Switch it off."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(30)


def attempt(builder: Builder, image: Image) -> dict[str, Any]:
    """Boot, and do to the unit what befalls one; what was found.

    Raises:
        TrialError: something is not as it should be.
    """
    machine = Booted(builder, image)
    try:
        active = "it is active"
        machine.until(machine.is_up, "systemd is there")
        machine.until(lambda: machine.shown("ActiveState") == "active", active)
        first = machine.shown("MainPID")
        found: dict[str, Any] = {"exposure": _exposure(machine)}
        _confined(machine, first)
        found |= client(machine.pid, "trial.py", "8084", TOKEN)
        found["checklist"] = checklist(machine.execute, TOKEN, ["--folder", f"/run/{UNIT}"])
        if machine.execute(["systemctl", "reload", UNIT]).returncode:
            raise TrialError("it cannot be reloaded")
        if machine.shown("MainPID") != first:
            raise TrialError("it has not lived through its reload")
        machine.execute(["sh", "-c", f"kill -STOP {first}"])
        machine.until(lambda: machine.shown("NRestarts") == "1", "the watchdog acts")
        machine.until(lambda: machine.shown("ActiveState") == "active", active)
        found["restarted_by_watchdog"] = machine.shown("MainPID") != first
        machine.execute(["systemctl", "stop", UNIT])
        found["stopped"] = machine.shown("Result")
    finally:
        machine.end()
    return found


def _exposure(machine: Booted) -> float:
    """What ``systemd-analyze security`` says of the unit as it runs."""
    said = machine.execute(["systemd-analyze", "security", "--no-pager", UNIT]).stdout
    level = re.search(r"Overall exposure level.*?: ([\d.]+)", said)
    if level is None or float(level[1]) > 3:
        raise TrialError(f"exposed: {said[-300:]}")
    return float(level[1])


def _confined(machine: Booted, pid: str) -> None:
    """See that the server is nobody's, can gain nothing, and that its calls are filtered."""
    said = machine.execute(["cat", f"/proc/{pid}/status"]).stdout
    fields = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
    uid = fields["Uid"].split()[0]
    known = fields["CapEff"], fields["NoNewPrivs"], fields["Seccomp"]
    if uid == "0" or known != ("0" * 16, "1", "2"):
        raise TrialError(f"user {uid}, capabilities, privileges, filter: {known}")
