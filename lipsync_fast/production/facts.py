# SPDX-License-Identifier: Apache-2.0
"""What can be seen of a running server and of its machine, without asking its ports.

Nothing is judged here (``checks`` does), and nothing fails: what cannot be seen is None.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

from lipsync_fast.config import ServeConfig
from lipsync_fast.ipc.status import EngineStatus, FrontStatus, GatewayStatus, ServerStatus
from lipsync_fast.machine import ROOT, control_groups, processor_quota
from lipsync_fast.utterances.database import FILE

SYSTEMCTL_S = 5.0
TIME_ERROR = 5
"""What adjtimex answers where nothing keeps the clock right."""
NETWORK_AND_MEMORY = frozenset({"tmpfs", "ramfs"})


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel says of the server's processes.

    Attributes:
        open_files: that the supervisor, and so each child, may have open.
        root: it runs as root; capabilities: it has some.
        swapped_bytes: of all its processes.
        unit: of systemd that it runs as; empty where there is none.
        first: it is process 1: a container's.
        store: folder of the kept utterances that an engine has open.
    """

    open_files: int | None = None
    root: bool = False
    capabilities: bool = False
    swapped_bytes: int = 0
    unit: str = ""
    first: bool = False
    store: Path | None = None


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """What systemd does with the unit that the server runs as."""

    stop_s: float
    """Until it is killed; infinite where never."""
    restart: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine, or as much of it as the server's control groups leave.

    Attributes:
        memory_free: bytes that the server's processes could still take, of the machine's and of
            their control groups'.
        commit_free: bytes that may still be promised, where the kernel counts them
            (vm.overcommit_memory = 2).
        processors: of the quota; None where there is none.
        synchronized: whether something keeps the clock right.
        store_free: bytes free where utterances are kept; store_lasts: a restart leaves them.
    """

    memory_free: int | None = None
    commit_free: int | None = None
    processors: float | None = None
    synchronized: bool | None = None
    store_free: int | None = None
    store_lasts: bool = True


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All of it.

    Attributes:
        stop_s: that whoever manages the server waits before killing it, where the caller knows.
    """

    settings: ServeConfig
    status: ServerStatus
    process: Process = Process()
    machine: Machine = Machine()
    unit: Unit | None = None
    stop_s: float | None = None


def children(status: ServerStatus) -> list[EngineStatus | FrontStatus | GatewayStatus]:
    """All processes of a server but the supervisor."""
    return [*status.engines, *status.fronts, *status.gateways]


def look(
    settings: ServeConfig, status: ServerStatus, stop_s: float | None, root: Path = ROOT
) -> Facts:
    """Look at a server that runs on this machine.

    Args:
        root: of the file systems of the kernel and of control groups.
    """
    process = look_at_process(status, root)
    machine = look_at_machine(status.pid, process.store, root)
    unit = ask_systemd(process.unit) if process.unit else None
    return Facts(
        settings=settings, status=status, process=process, machine=machine, unit=unit, stop_s=stop_s
    )


def look_at_process(status: ServerStatus, root: Path = ROOT) -> Process:
    """The server's processes, in /proc."""
    pids = [status.pid, *(child.pid for child in children(status) if child.pid)]
    own = _fields(root / f"proc/{status.pid}/status")
    swapped = [_kib(_fields(root / f"proc/{pid}/status").get("VmSwap")) or 0 for pid in pids]
    cgroup = _text(root / f"proc/{status.pid}/cgroup")
    unit = re.search(r"([^/\n]+\.service)(?:/[^\n]*)?$", cgroup, re.MULTILINE)
    return Process(
        open_files=_open_files(_text(root / f"proc/{status.pid}/limits")),
        root=own.get("Uid", "").split()[:1] == ["0"],
        capabilities=int(own.get("CapEff", "0"), 16) != 0,
        swapped_bytes=sum(swapped),
        unit=unit[1] if unit and not unit[1].startswith("user@") else "",
        first=own.get("NSpid", "0").split()[-1:] == ["1"],
        store=_store((child.pid for child in status.engines), root),
    )


def look_at_machine(pid: int, store: Path | None, root: Path = ROOT) -> Machine:
    """Memory, processors, clock and disk, as the process may use them."""
    memory = _fields(root / "proc/meminfo")
    room = [_kib(memory.get("MemAvailable")), *_group_rooms(pid, root)]
    strict = _text(root / "proc/sys/vm/overcommit_memory").strip() == "2"
    limit, promised = _kib(memory.get("CommitLimit")), _kib(memory.get("Committed_AS"))
    commit = limit - promised if strict and limit is not None and promised is not None else None
    free, lasts = None, True
    if store is not None:
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(store).free
        lasts = _kind_of_mount(store, _text(root / "proc/mounts")) not in NETWORK_AND_MEMORY
    return Machine(
        memory_free=min((r for r in room if r is not None), default=None),
        commit_free=commit,
        processors=processor_quota(root, str(pid)),
        synchronized=is_synchronized(),
        store_free=free,
        store_lasts=lasts,
    )


def is_synchronized() -> bool | None:
    """Whether the kernel has been told lately that its clock is right (adjtimex)."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        state = library.adjtimex(ctypes.create_string_buffer(256))  # all 0: only asks
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != TIME_ERROR


def ask_systemd(unit: str) -> Unit | None:
    """What systemd would do with a unit; None where it cannot be asked."""
    command = ["systemctl", "show", "--property=TimeoutStopUSec,Restart", "--", unit]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SYSTEMCTL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    stop_s = seconds(found.get("TimeoutStopUSec", ""))
    if done.returncode or stop_s is None:
        return None
    return Unit(stop_s=stop_s, restart=found.get("Restart", "no"))


def seconds(span: str) -> float | None:
    """A span of time as systemd writes it, such as "1min 30s" or "infinity"."""
    if span == "infinity":
        return float("inf")
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
    total = 0.0
    for part in span.split():
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|min|h|d)", part)
        if found is None:
            return None
        total += float(found[1]) * units[found[2]]
    return total if span else None


# ---------------------------------------------------------------- reading
def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _fields(path: Path) -> dict[str, str]:
    """Lines "NAME: VALUE"."""
    pairs = (line.partition(":") for line in _text(path).splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _kib(text: str | None) -> int | None:
    """Bytes of "123 kB"."""
    number = (text or "").split()[:1]
    return int(number[0]) * 1024 if number and number[0].isdecimal() else None


def _open_files(limits: str) -> int | None:
    found = re.search(r"^Max open files\s+(\d+|unlimited)", limits, re.MULTILINE)
    if found is None:
        return None
    return 1 << 30 if found[1] == "unlimited" else int(found[1])


def _store(pids: Iterable[int], root: Path) -> Path | None:
    """The folder whose file of utterances one of these processes has open."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for link in (root / f"proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    target = Path(os.readlink(link))
                    if target.name == FILE:
                        return target.parent
    return None


def _group_rooms(pid: int, root: Path) -> list[int]:
    """What each control group above the process leaves of its memory; the page cache is free."""
    rooms = []
    for folder in control_groups(root, str(pid), "memory"):
        for most, now in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _text(folder / most).strip(), _text(folder / now).strip()
            if limit.isdecimal() and used.isdecimal() and int(limit) < 1 << 60:
                stat = dict(line.split()[:2] for line in _text(folder / "memory.stat").splitlines())
                cache = int(stat.get("inactive_file", stat.get("total_inactive_file", "0")))
                rooms.append(max(0, int(limit) - int(used) + cache))
    return rooms


def _kind_of_mount(path: Path, mounts: str) -> str:
    """The kind of the file system that a path is on."""
    best, kind = "", ""
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        at = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), words[1])
        if path.is_relative_to(at) and len(at) >= len(best):
            best, kind = at, words[2]
    return kind
