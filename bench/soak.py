# SPDX-License-Identifier: Apache-2.0
"""A server under clients that come and go, interrupt, die, read slowly, for an hour: what grows?

    python bench/soak.py [--minutes 60] [--out DIR]

Starts ``lipsync-fast serve``, with its gateway for gRPC and WebRTC and with espeak-ng for text, and
sends it the people of clients.py and other_clients.py; now and then kills an engine.
Every 10 seconds it notes memory, descriptors and threads of every process of the server, and what
lies in /dev/shm. Writes soak.json and, where matplotlib is installed, soak.png into ``--out``; the
verdict compares the last third with the second one, and what is left when all have gone with what
was there before they came.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import trio
from clients import Place, come_and_go
from plots import draw

from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.processes import shm_files, usage
from lipsync_fast.client.local import LocalServer
from lipsync_fast.errors import LipsyncError
from lipsync_fast.ipc.status import ServerStatus
from lipsync_fast.timing import NS_PER_S

SAMPLE_S = 10.0
QUIET_S = 15.0
MAY_GROW = {
    "private_mb": (10.0, 0.05),
    "shm_mb": (10.0, 0.05),
    "descriptors": (6.0, 0.1),
    "threads": (2.0, 0.1),
    "dev_shm_files": (2.0, 0.1),
    "dev_shm_mb": (10.0, 0.05),
}
"""What counts as flat: growth up to so much, or up to this share of what is there."""
SETTLED_S = 300.0
"""After a kill: by then a new spare is prepared, and the caches of who works now are full."""
FEWEST = 9
"""Rows that make a life."""


def roles(status: ServerStatus) -> dict[str, list[int]]:
    """The server's processes by what they do."""
    found: dict[str, list[int]] = {"supervisor": [status.pid]}
    for front in status.fronts:
        found.setdefault("front", []).append(front.pid)
    for engine in status.engines:
        # One that has just been born is left out: it is still loading.
        if engine.state in ("ready", "spare"):
            name = "engine" if engine.state == "ready" else "spare engine"
            found.setdefault(name, []).append(engine.pid)
    for gateway in status.gateways:
        if gateway.state == "ready":
            found.setdefault("gateway", []).append(gateway.pid)
    return found


class Soak:
    """The server, its visitors and what is noted of them."""

    def __init__(self, server: LocalServer, args: argparse.Namespace) -> None:
        self._server, self._args = server, args
        (gateway,) = server.status().gateways
        self.place = Place(
            server.url,
            server.http_url,
            grpc=f"127.0.0.1:{gateway.ports['grpc'][0]}",
            webrtc=f"http://127.0.0.1:{gateway.ports['webrtc'][0]}",
        )
        self.rows: list[dict[str, Any]] = []
        self.kills_s: list[float] = []
        self.begun_ns = time.monotonic_ns()
        self.status: ServerStatus | None = None

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return round((time.monotonic_ns() - self.begun_ns) / NS_PER_S, 1)

    async def sample(self) -> dict[str, Any] | None:
        """Look at all processes once; None when the server did not answer."""
        try:
            status = await trio.to_thread.run_sync(self._server.status)
        except LipsyncError as error:
            self.place.counts.note_wrong(f"no status: {error}")
            return None
        self.status = status
        row: dict[str, Any] = {"s": self.now_s, "roles": {}}
        for role, members in roles(status).items():
            used = [u for u in map(usage, members) if u is not None]
            if used:
                dicts = [msgspec.to_builtins(u) for u in used]
                row["roles"][role] = {
                    key: round(sum(d[key] for d in dicts) / len(dicts), 2) for key in dicts[0]
                }
        row["dev_shm_files"], row["dev_shm_mb"] = shm_files()
        row["connections"] = sum(f.load.connections for f in status.fronts)
        row["sessions"] = sum(f.load.sessions for f in status.fronts)
        row["speaking"] = sum(f.load.speaking for f in status.fronts)
        return row

    async def watch(self) -> None:
        """Sample until cancelled; kept on disk as it goes."""
        while True:
            row = await self.sample()
            if row is not None:
                self.rows.append(row)
            await trio.sleep(SAMPLE_S)

    async def kill_engines(self, every_s: float) -> None:
        """kill -9 an engine that works, now and then."""
        rng = random.Random(5)
        while every_s > 0:
            await trio.sleep(every_s * rng.uniform(0.7, 1.3))
            try:
                status = await trio.to_thread.run_sync(self._server.status)
            except LipsyncError:
                continue
            ready = [e.pid for e in status.engines if e.state == "ready" and e.pid]
            if ready:
                os.kill(rng.choice(ready), signal.SIGKILL)
                self.kills_s.append(self.now_s)

    async def run(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The whole soak; what was there before the first visitor and behind the last one."""
        await trio.sleep(QUIET_S)
        before = await self.sample()
        until = time.monotonic_ns() + int(self._args.minutes * 60 * NS_PER_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.watch)
            nursery.start_soon(self.kill_engines, self._args.kill_every * 60)
            async with trio.open_nursery() as people:
                for seed in range(self._args.people):
                    people.start_soon(come_and_go, self.place, seed, until)
            nursery.cancel_scope.cancel()
        await trio.sleep(QUIET_S)
        return before, await self.sample()


def lives(rows: list[dict[str, Any]], kills_s: list[float]) -> list[list[dict[str, Any]]]:
    """The rows between two kills: a kill puts new processes in the places of engine and spare."""
    edges = [0.0, *kills_s, float("inf")]
    spans = [
        [r for r in rows if begun + SETTLED_S <= r["s"] < ended]
        for begun, ended in itertools.pairwise(edges)
    ]
    return [span for span in spans if len(span) >= FEWEST]


def verdicts(rows: list[dict[str, Any]], kills_s: list[float]) -> list[dict[str, Any]]:
    """For each curve: medians of the second and last third, and whether it is flat.

    Of engines: of that process's life in which it grew the most. Two processes that do the same
    differ by some MB, each being constant.
    """
    curves: list[tuple[str, str]] = sorted(
        {(role, what) for r in rows for role in r["roles"] for what in MAY_GROW}
        | {("", "dev_shm_files"), ("", "dev_shm_mb")}
    )
    found = []
    for role, what in curves:
        spans = lives(rows, kills_s) if "engine" in role else [rows]
        grown = [pair for span in spans if (pair := _thirds(span, role, what)) is not None]
        if not grown:
            continue
        before, after = max(grown, key=lambda pair: pair[1] - pair[0])
        most, share = MAY_GROW[what]
        found.append(
            {
                "of": f"{role} {what}".strip(),
                "second_third": before,
                "last_third": after,
                "flat": after - before <= max(most, share * before),
            }
        )
    return found


def _thirds(span: list[dict[str, Any]], role: str, what: str) -> tuple[float, float] | None:
    """Medians of the second third and of the last one."""

    def values(part: list[dict[str, Any]]) -> list[float]:
        all_of = (row["roles"].get(role, {}) if role else row for row in part)
        return [row[what] for row in all_of if what in row]

    third = len(span) // 3
    a, b = values(span[third : 2 * third]), values(span[2 * third :])
    return (statistics.median(a), statistics.median(b)) if a and b else None


def left_behind(
    before: dict[str, Any] | None, after: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """What front and supervisor still hold when all clients have gone."""
    if before is None or after is None:
        return [{"of": "status", "flat": False}]
    found = []
    for role in ("front", "supervisor", "gateway"):
        for what in ("descriptors", "threads"):
            a, b = before["roles"][role][what], after["roles"][role][what]
            found.append({"of": f"{role} {what}", "before": a, "after": b, "flat": b - a <= 4})
    return found + [
        {"of": what, "before": 0, "after": after[what], "flat": after[what] == 0}
        for what in ("connections", "sessions", "speaking")
    ]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--people", type=int, default=6, help="visitors at the same time")
    parser.add_argument("--speakers", type=int, default=2, help="admitted at the same time")
    parser.add_argument(
        "--kill-every", type=float, default=15.0, help="minutes between two kills; 0 for none"
    )
    parser.add_argument("--out", type=Path, help="folder for the report")
    parser.add_argument("--again", type=Path, help="judge an earlier soak.json anew, and draw it")
    return parser.parse_args()


def judge_again(path: Path) -> int:
    """Renew the verdict of a report from its rows."""
    result = json.loads(path.read_text())
    result["curves"] = verdicts(result["rows"], result["kills_s"])
    flat = all(v["flat"] for v in (*result["curves"], *result["left_behind"]))
    result["flat_and_right"] = flat and not result["wrong"]
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))
    program.write(path, result, indent=None)
    draw(path)
    return 0 if result["flat_and_right"] else 1


def main() -> int:
    """Soak and report; exit status 1 where something grew or went wrong."""
    args = parsed()
    if args.again is not None:
        return judge_again(args.again)
    config = {
        "live": {"speakers": args.speakers, "half_rate": False},
        "log": {"level": "warning"},
        "utterances": {"disk_mb": 0},
        "listen": {"grpc_ports": [0], "webrtc_ports": [0]},
        "webrtc": {"addresses": ["127.0.0.1"]},
        "speech": {"engine": "espeak"},
    }
    with LocalServer(config) as server:
        soak = Soak(server, args)
        before, after = trio.run(soak.run)
        log = server.log()
    counts = soak.place.counts
    flat, left = verdicts(soak.rows, soak.kills_s), left_behind(before, after)
    good = all(v["flat"] for v in (*flat, *left)) and not counts.wrong
    result = {
        **program.about_this_run(),
        "minutes": round(soak.now_s / 60, 1),
        "flat_and_right": good,
        "curves": flat,
        "left_behind": left,
        "visits": dict(counts.visits),
        "seen": dict(counts.seen),
        "wrong": counts.wrong,
        "kills_s": soak.kills_s,
        "status_at_end": msgspec.to_builtins(soak.status),
    }
    print(json.dumps(result, indent=1))
    if args.out is not None:
        path = args.out / "soak.json"
        program.write(path, result | {"rows": soak.rows}, indent=None)
        (args.out / "soak.log").write_text(log)
        draw(path)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
