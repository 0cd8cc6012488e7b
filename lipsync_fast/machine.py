# SPDX-License-Identifier: Apache-2.0
"""What this machine lets us use: processors, who shares them, and how many files may be open."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
OWN_FROM = 4
"""Processors from which on each front keeps one for itself; with fewer, engines use all."""
MOST_FILES = 1 << 20
"""What more open files than this would be good for nobody knows; some systems allow billions."""


FOR_OTHERS = 64
"""Descriptors that avatars leave."""


def processors(root: Path = ROOT) -> int:
    """Processors that this process may use, by affinity, cpusets, and its control groups' quotas.

    A quota of one and a half is worth two threads.
    """
    count = len(os.sched_getaffinity(0))  # cpusets are in it
    quota = processor_quota(root)
    return count if quota is None else min(count, max(1, int(quota + 0.5)))


def processor_model(root: Path = ROOT) -> str:
    """What the processors call themselves."""
    for line in (root / "proc/cpuinfo").read_text(errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def are_shared() -> bool:
    """Whether CPU engines and fronts use the same processors."""
    return processors() < OWN_FROM


def processor_quota(root: Path = ROOT, pid: str = "self") -> float | None:
    """Processors' time that the control groups leave a process; None where that is all.

    Each group on the way from the process's own up to the topmost one that can be seen may set a
    limit, and the least one counts: systemd's CPUQuota is the service's, a container's is above it.
    Both versions of control groups are looked at.
    """
    groups = control_groups(root, pid, "cpu")
    return min((found for folder in groups if (found := _quota(folder)) is not None), default=None)


def control_groups(root: Path, pid: str, controller: str) -> Iterator[Path]:
    """Folders of the groups that a process is in and that may limit something, and above.

    Args:
        controller: what is limited: "cpu", "memory".
    """
    mounts = _mounts(root, controller)
    try:
        lines = (root / "proc" / pid / "cgroup").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, own = [*line.split(":", 2), "", ""][:3]
        kind = "cgroup" if controller in controllers.split(",") else "cgroup2"
        if kind == "cgroup2" and controllers:  # another one of version 1
            continue
        for top, folder in mounts.get(kind, []):
            inside = PurePosixPath(own)
            if ".." in inside.parts or not inside.is_relative_to(top):
                inside = PurePosixPath(top)  # seen from inside a container that is told it from out
            for part in (inside, *inside.parents):
                if not part.is_relative_to(top):
                    break
                yield folder / part.relative_to(top)
    if not lines or not mounts:
        yield root / "sys/fs/cgroup"


def _mounts(root: Path, controller: str) -> dict[str, list[tuple[str, Path]]]:
    """Where control groups are mounted, and which group that shows, by version."""
    found: dict[str, list[tuple[str, Path]]] = {}
    try:
        lines = (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or len(kinds) < 3:
            continue
        kind, options = kinds[0], kinds[-1].split(",")
        if kind == "cgroup2" or (kind == "cgroup" and controller in options):
            top, at = (re.sub(r"\\([0-7]{3})", _octal, field) for field in fields[3:5])
            found.setdefault(kind, []).append((top, root / at.lstrip("/")))
    return found


def _octal(escaped: re.Match[str]) -> str:
    return chr(int(escaped[1], 8))


def _quota(folder: Path) -> float | None:
    """A group's own limit in processors, of either version."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = " ".join((folder / name).read_text() for name in names).split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):  # not there, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None


def raise_open_files() -> int:
    """Have as many files open as this process may ask for; how many that are.

    Shells and services begin with 1,024, of which each connection takes one, and may ask for more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # a sandbox may refuse what the limit allows
        return soft
    return most


def leaves_descriptors(fd: int) -> bool:
    """Whether enough files may still be opened behind one that has just been; the kernel gives the
    lowest number that is free.

    Avatars take descriptors for as long as they are in use. Without some that they leave, no engine
    could take a dead one's place.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most == resource.RLIM_INFINITY or fd < most - min(FOR_OTHERS, most // 4)


def too_many_avatars() -> str:
    """What is said where an avatar would take the last ones."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"one avatar more than this server may have files open for (ulimit -n {most}); raise that,"
        " or unload others"
    )
