# SPDX-License-Identifier: Apache-2.0
"""The checklist: what of a running server is as it should be where others depend on it.

Each check is a function of the facts alone, gives one item, and can come out either way.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable
from typing import Literal

import msgspec

from lipsync_fast import canonical
from lipsync_fast.production.facts import Facts, children
from lipsync_fast.timing import FPS
from lipsync_fast.version import __version__

Result = Literal["ok", "warning", "wrong"]
MIB = 1 << 20
SHORTEST_TOKEN = 16
FOR_OTHERS, FOR_HTTP, FOR_AVATAR = 64, 256, 3
"""Descriptors of a front beside its sessions': engines and files, HTTP, each avatar."""
ENGINE_BYTES = 1024 * MIB
"""What an engine may come to hold for itself: networks, and its caches (docs/operations.md)."""
STARTING_BYTES = 300 * MIB
"""What one needs to start at all."""
DISK_LEAST_BYTES = 200 * MIB
SWAPPED_BYTES = 32 * MIB
LATE = 0.01
"""Share of spoken frames that were not ready in time."""
ENDING_S = 3.0
"""Behind utterances' end: children that do not stop are killed after 2 s."""
RESTARTS_AN_HOUR = 1.0
COSTS = "speakers", "seconds_per_day", "connects_per_minute"
"""That limits.…_per_subject and limits.…_per_address bound, where they are set."""
PRIVATE = "programs of this machine alone"


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """What one check has found, and what to do where that is not well."""

    name: str
    result: Result
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Item:
    """All is well."""
    return Item(name=name, result="ok", found=found)


def warning(name: str, found: str, advice: str) -> Item:
    """It works, and somebody should know."""
    return Item(name=name, result="warning", found=found, advice=advice)


def wrong(name: str, found: str, advice: str) -> Item:
    """It must not stay so."""
    return Item(name=name, result="wrong", found=found, advice=advice)


# ---------------------------------------------------------------- who may
def clients(facts: Facts) -> Item:
    """Who may connect."""
    name, listen = "clients", facts.settings.listen
    if asks := what_is_asked(facts):
        if listen.token and len(listen.token) < SHORTEST_TOKEN:
            found = f"the token has {len(listen.token)} characters"
            return warning(name, found, "take a longer one: openssl rand -hex 24")
        return ok(name, f"must show {asks}")
    if not canonical.is_bound_here(listen.host):
        advice = "set listen.token, access.jwt_keys or access.api_keys (docs/operations.md)"
        return wrong(name, f"whoever reaches {listen.host} may connect: no token is asked", advice)
    if not is_private(facts):
        return warning(name, "whoever reaches the proxy may connect", "set listen.token")
    return ok(name, PRIVATE)


def is_private(facts: Facts) -> bool:
    """Whether nobody comes from elsewhere, not through a proxy either."""
    listen = facts.settings.listen
    return canonical.is_bound_here(listen.host) and not (listen.origins or listen.proxies)


def what_is_asked(facts: Facts) -> str:
    """What clients must show, in words; empty where nothing."""
    listen, access = facts.settings.listen, facts.settings.access
    asked = {
        "the token": listen.token,
        "a JWT": access.jwt_keys,
        "an API key": access.api_keys,
        "a certificate": listen.tls_client_ca,
    }
    return " or ".join(name for name, given in asked.items() if given)


def secrets(facts: Facts) -> Item:
    """Whether others of this machine may read or write what decides who may connect."""
    listen, access = facts.settings.listen, facts.settings.access
    name, others = "secret files", stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH
    files = {
        listen.tls_key: others,
        access.api_keys: others,
        access.jwt_keys: stat.S_IWGRP | stat.S_IWOTH,  # public keys may be read
    }
    found = []
    for file, unwanted in files.items():
        try:
            if file and os.stat(file).st_mode & unwanted:
                found.append(file)
        except OSError as error:
            return wrong(name, f"{file}: {error.strerror}", "the next start fails: put it back")
    if found:
        advice = f"chmod go-w,o-r {' '.join(found)}"
        return wrong(name, f"others may read or change {', '.join(found)}", advice)
    return ok(name, ", ".join(filter(None, files)) or "none")


def pages(facts: Facts) -> Item:
    """Which browsers' pages may connect."""
    name, origins = "pages", facts.settings.listen.origins
    if "*" in origins:
        advice = "name those that may in listen.origins"
        judged = warning if what_is_asked(facts) else wrong
        return judged(name, "pages of every origin may connect", advice)
    return ok(name, "the server's own" + (f", {', '.join(origins)}" if origins else ""))


def encryption(facts: Facts) -> Item:
    """Whether others can listen on the way."""
    name, listen = "encryption", facts.settings.listen
    if canonical.is_bound_here(listen.host):
        return ok(name, "nothing leaves this machine by itself")
    if listen.tls_cert:
        return ok(name, f"TLS on every port, by {listen.tls_cert}")
    advice = "set listen.tls_cert, or listen on 127.0.0.1 behind a proxy (docs/proxies.md)"
    if listen.proxies:
        found = f"without TLS to proxies at {', '.join(listen.proxies)}, and to anybody else"
        return warning(name, found, "let a firewall keep others from these ports")
    return wrong(name, f"speech, pictures and tokens pass {listen.host} without TLS", advice)


def proxies(facts: Facts) -> Item:
    """Whether a proxy's clients are told apart."""
    name, listen, limits = "proxies", facts.settings.listen, facts.settings.limits
    if listen.proxies:
        return ok(name, f"{', '.join(listen.proxies)} say for whom they ask")
    if canonical.is_bound_here(listen.host) and listen.origins:
        advice = "name the proxy's address in listen.proxies (docs/proxies.md)"
        return wrong(name, "all clients of the proxy count as one, and as this machine", advice)
    if limits.sessions_per_address >= limits.sessions:
        advice = "set limits.sessions_per_address below limits.sessions"
        return warning(name, "one address may take all connections", advice)
    return ok(name, f"{limits.sessions_per_address} connections of one address at most")


def quotas(facts: Facts) -> Item:
    """Whether one client may use up what is there for all."""
    name, access, limits = "quotas", facts.settings.access, facts.settings.limits
    if is_private(facts) and not what_is_asked(facts):
        return ok(name, PRIVATE)
    names = [f"{cost}_per_address" for cost in COSTS]
    advice = "set limits.seconds_per_day_per_address, or its like"
    if access.jwt_keys or access.api_keys:
        names += [f"{cost}_per_subject" for cost in ("sessions", *COSTS)]
        advice += ", …_per_subject, unless each token has its own"
    given = [f"{each} {getattr(limits, each):g}" for each in names if getattr(limits, each)]
    if not given:
        return warning(name, "one client may speak without end, and take all places", advice)
    return ok(name, ", ".join(given))


def audit(facts: Facts) -> Item:
    """Whether it can be told afterwards who was there."""
    if file := facts.settings.log.audit:
        return ok("audit log", file)
    if is_private(facts):
        return ok("audit log", f"none; {PRIVATE}")
    advice = "set log.audit (docs/operations.md)"
    return warning("audit log", "nobody writes down who was there, and who was refused", advice)


def avatars(facts: Facts) -> Item:
    """Whether what is run is what the operator has signed."""
    name, settings = "avatars", facts.settings.avatars
    if not settings.require_signed:
        advice = "sign packages (lipsync-fast avatar sign), and serve --require-signed KEYS"
        return warning(name, "packages that nobody has signed are served", advice)
    try:
        mode = os.stat(settings.require_signed).st_mode
    except OSError as error:
        advice = "the server cannot check the next avatar: put the file back"
        return wrong(name, f"{settings.require_signed}: {error.strerror}", advice)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        found = f"others may write {settings.require_signed}, and so add keys"
        return wrong(name, found, f"chmod go-w {settings.require_signed}")
    return ok(name, f"must be signed by a key in {settings.require_signed}")


def privileges(facts: Facts) -> Item:
    """Whether a break-in would have more than this server."""
    if facts.process.root or facts.process.capabilities:
        who = "root" if facts.process.root else "a user with capabilities"
        advice = "run it as a user of its own: lipsync-fast systemd, or the container's user"
        return wrong("privileges", f"it runs as {who}", advice)
    return ok("privileges", "none")


# ---------------------------------------------------------------- what there is
def open_files(facts: Facts) -> Item:
    """Whether as many as may connect can."""
    name, most = "open files", facts.process.open_files
    used = FOR_AVATAR * len(facts.status.avatars)
    need = facts.settings.limits.sessions + FOR_HTTP + FOR_OTHERS + used
    if most is None:
        return warning(name, "cannot be seen", "ask as root, or as the server's user")
    if most < need:
        advice = f"raise LimitNOFILE= or ulimit -n to {need}, or lower limits.sessions"
        return wrong(name, f"{most} for each process; {need} are needed", advice)
    return ok(name, f"{most} for each process; {need} are needed")


def memory(facts: Facts) -> Item:
    """Whether an engine that takes another one's place finds memory."""
    name, free = "memory", facts.machine.memory_free
    if free is None:
        return warning(name, "cannot be seen", "is /proc mounted?")
    found = f"{free // MIB} MiB are left"
    if facts.machine.commit_free is not None and facts.machine.commit_free < free:
        free = facts.machine.commit_free
        found = f"{max(0, free) // MIB} MiB may still be promised (vm.overcommit_memory = 2)"
    if free < STARTING_BYTES:
        return wrong(
            name, found, f"an engine needs {STARTING_BYTES // MIB} MiB to start: give more"
        )
    if free < ENGINE_BYTES:
        advice = (
            f"an engine may come to hold {ENGINE_BYTES // MIB} MiB: give more, or fewer avatars"
        )
        return warning(name, found, advice)
    return ok(name, found)


def swap(facts: Facts) -> Item:
    """Whether the kernel has put parts of the server on a disk."""
    swapped = facts.process.swapped_bytes
    if swapped > SWAPPED_BYTES:
        advice = "pictures that wait for a disk are late: more memory, or MemorySwapMax=0"
        return wrong("swap", f"{swapped // MIB} MiB of the server are swapped out", advice)
    return ok("swap", "the server is in memory")


def processors(facts: Facts) -> Item:
    """Whether what it can make is enough for anybody, and not cut off by a quota."""
    name, status, quota = "processors", facts.status, facts.machine.processors
    found = f"{status.capacity:.0f} frames/s, {status.speakers} may speak at once"
    if status.capacity < FPS:
        advice = "give it more processors, or an avatar that costs less"
        return wrong(name, f"{found}: less than one speaker needs ({FPS})", advice)
    if quota is not None and abs(quota - round(quota)) > 0.01:
        advice = "whole processors: threads beyond the quota stand still in the middle of a frame"
        return warning(name, f"{found}; a quota of {quota:g}", advice)
    return ok(name, found + (f"; a quota of {quota:g}" if quota is not None else ""))


def spares(facts: Facts) -> Item:
    """Whether an engine's death is felt."""
    name, wanted = "spare engines", facts.settings.engines.spares
    if not wanted:
        advice = "serve --spares 1: else sessions stand still while an engine starts"
        return warning(name, "none is kept", advice)
    ready = sum(engine.state == "spare" for engine in facts.status.engines)
    starting = sum(engine.state == "starting" for engine in facts.status.engines)
    if ready < wanted:
        found, advice = f"{ready} of {wanted} are ready", "is there memory? see the log, and status"
        if ready + starting >= wanted:
            return warning(name, f"{found}, {starting} starting", "ask again in a minute")
        return wrong(name, found, advice)
    return ok(name, f"{ready} ready")


def disk(facts: Facts) -> Item:
    """Whether kept utterances have a place."""
    name, kept, free = "disk", facts.settings.utterances, facts.machine.store_free
    if not kept.disk_mb:
        return ok(name, "no utterances are kept")
    if facts.process.store is None or free is None:
        advice = "make utterances.folder writable, or set utterances.disk_mb = 0"
        return wrong(name, "utterances are to be kept, and no engine has their file open", advice)
    where = f"{free // MIB} MiB are free in {facts.process.store}"
    now = max((engine.load.store_bytes for engine in facts.status.engines), default=0)
    to_come = max(0, kept.disk_mb * 10**6 - now)
    if free < DISK_LEAST_BYTES:
        return wrong(name, where, "free some, or lower utterances.disk_mb")
    if free < to_come:
        advice = f"{to_come // MIB} MiB may still come: free some, or lower utterances.disk_mb"
        return warning(name, where, advice)
    if not facts.machine.store_lasts:
        return warning(name, f"{where}, in memory", "mount a volume: a restart loses what is kept")
    return ok(name, where)


def clock(facts: Facts) -> Item:
    """Whether logs of several machines, tokens and certificates can be compared in time."""
    name, right = "clock", facts.machine.synchronized
    if right is None:
        return warning(name, "cannot be asked", "see timedatectl")
    if not right:
        advice = "run an NTP client (systemd-timesyncd, chrony): tokens expire by this clock"
        return wrong(name, "is not synchronized", advice)
    return ok(name, "synchronized")


# ---------------------------------------------------------------- how it does
def logs(facts: Facts) -> Item:
    """Whether logs say enough, and no more."""
    name, log = "logs", facts.settings.log
    if log.trace:
        return wrong(name, f"{log.trace} grows without end", "unset log.trace")
    if log.level == "debug":
        return warning(name, "everything is logged", "set log.level to info")
    if log.level == "error":
        advice = "set log.level to warning: what is replaced, refused and lost is a warning"
        return warning(name, "only errors are logged", advice)
    return ok(name, f"{log.level}, as {log.format}")


def engines(facts: Facts) -> Item:
    """Whether engines make what they are asked."""
    name, working = "engines", [e for e in facts.status.engines if e.state == "ready"]
    if not working:
        return wrong(name, "none works", "see the log, and lipsync-fast doctor")
    gone = [e for e in facts.status.engines if e.state == "gone"]
    if gone:
        reasons = ", ".join(f"{e.name}: {e.reason or 'gone'}" for e in gone)
        return wrong(name, f"lost: {reasons}", "see the log, and lipsync-fast doctor")
    failed = sum(e.load.failed + e.load.damaged for e in facts.status.engines)
    made = sum(e.load.made for e in facts.status.engines)
    if failed:
        advice = "see the log: an avatar may be broken"
        return warning(name, f"{failed} of {made + failed} frames have failed", advice)
    return ok(name, f"{len(working)} work, and no frame has failed")


def errors(facts: Facts) -> Item:
    """Whether clients were answered by what is nobody's wish."""
    ours: dict[str, int] = {}
    for front in facts.status.fronts:
        for code in ("internal", "engine_lost"):
            if count := front.load.errors.get(code, 0):
                ours[code] = ours.get(code, 0) + count
    if ours:
        told = ", ".join(f"{code} {count}" for code, count in sorted(ours.items()))
        return warning("errors", f"clients were told: {told}", "see the log")
    return ok("errors", "none that is the server's")


def lateness(facts: Facts) -> Item:
    """Whether pictures come in time."""
    loads = [front.load for front in facts.status.fronts]
    late = sum(load.late for load in loads)
    spoken = sum(load.frames - load.idle_frames for load in loads)
    if late and late > LATE * spoken:
        advice = "fewer speakers (live.speakers), more processors, or see what else uses them"
        return warning("late frames", f"{late} of {spoken} spoken frames came late", advice)
    return ok("late frames", f"{late} of {spoken} spoken frames")


def restarts(facts: Facts) -> Item:
    """Whether processes die."""
    status = facts.status
    count = sum(child.restarts for child in children(status))
    hours = max(status.uptime_s / 3600, 1.0)
    if not count:
        return ok("restarts", f"none in {span(status.uptime_s)}")
    found = f"{count} in {span(status.uptime_s)}"
    advice = "see the log for why"
    if count / hours > RESTARTS_AN_HOUR:
        return wrong("restarts", found, advice)
    return warning("restarts", found, advice)


def stopping(facts: Facts) -> Item:
    """Whether utterances may end before the server is killed."""
    name = "stopping"
    need = facts.settings.drain_seconds + ENDING_S
    given = facts.stop_s
    if given is None and facts.unit is not None:
        given = facts.unit.stop_s
    if given is None:
        advice = "say how long its manager waits: --stop-seconds (Kubernetes: the grace period)"
        return warning(name, f"it needs {need:g} s to stop", advice)
    if given < need:
        advice = (
            f"raise that to {math.ceil(need)} (TimeoutStopSec=, stop_grace_period, …GracePeriod"
        )
        advice += "Seconds), or lower drain_seconds"
        return wrong(name, f"it needs {need:g} s to stop, and is killed after {given:g}", advice)
    return ok(name, f"it needs {need:g} s, and has {given:g}")


def supervision(facts: Facts) -> Item:
    """Whether somebody starts the server again."""
    name = "supervision"
    if facts.unit is not None:
        if facts.unit.restart == "no":
            return wrong(name, f"{facts.process.unit} is not restarted", "set Restart=on-failure")
        return ok(name, f"{facts.process.unit}: Restart={facts.unit.restart}")
    if facts.process.first:
        return ok(name, "it is a container's first process: its engine restarts it")
    advice = "lipsync-fast systemd --install, or a container"
    return warning(name, "nobody starts it again when it ends", advice)


def version(facts: Facts) -> Item:
    """Whether what runs is what is installed."""
    if facts.status.version != __version__:
        found = f"{facts.status.version} runs, {__version__} is installed"
        return warning("version", found, "restart it")
    return ok("version", __version__)


def span(seconds: float) -> str:
    """A time in the largest unit that fits."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


CHECKS: tuple[Callable[[Facts], Item], ...] = (
    clients, secrets, pages, encryption, proxies, quotas, audit, avatars, privileges,
    open_files, memory, swap, processors, spares, disk, clock,
    engines, errors, lateness, restarts, logs,
    stopping, supervision, version,
)  # fmt: skip


def judge(facts: Facts) -> list[Item]:
    """All items, in the order in which they are read."""
    return [check(facts) for check in CHECKS]
