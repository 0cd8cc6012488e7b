# SPDX-License-Identifier: Apache-2.0
"""Load, replace and unload an avatar under two live sessions: is a frame lost, does memory grow?

    python bench/avatar_churn.py [--rounds 200] [--quiet-s 20] [--out DIR]

Two sessions speak all the time: one with the default avatar, one with the avatar that is changed,
whose first version it keeps. Each round puts a new file in that avatar's place and loads it, does
that again, and unloads it; every tenth round, somebody begins a session with the newest version,
and somebody is refused behind the unloading. Writes avatar_churn.json and, where matplotlib is
installed, avatar_churn.png: frames that came late in quiet times and in rounds, how long changes
took, and memory and descriptors of every process.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio
from plots import draw
from soak import roles

import lipsync_fast
from lipsync_fast.audio.windows import frame_count
from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.processes import machine, usage
from lipsync_fast.benchmark.speech import PIECE, piece_due_ns, shipped_recording
from lipsync_fast.cli.status import ControlClient
from lipsync_fast.client import SessionError, UtteranceEnded, VideoFrame
from lipsync_fast.client.local import LocalServer
from lipsync_fast.timing import NS_PER_S

GUEST = "guest"
SAMPLE_S = 3.0
SAID_S = 4.0
MAY_GROW = {"private_mb": (10.0, 0.05), "descriptors": (6.0, 0.1), "threads": (2.0, 0.1)}
"""What counts as flat: growth up to so much, or up to this share of what is there."""
MAY_BE_LATE = 0.001
"""Share of frames, or as many as in quiet times."""


@dataclass
class Said:
    """What a session that speaks has seen: at the start, in quiet times, in rounds.

    Attributes:
        late_s: when late frames came.
    """

    phase: str = "start"
    late_s: list[float] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, count: int) -> None:
        """Count."""
        counts: dict[str, int] = getattr(self, kind)
        counts[self.phase] = counts.get(self.phase, 0) + count


class Churn:
    """The server, who speaks, and what is changed."""

    def __init__(self, server: LocalServer, folder: Path, rounds: int, quiet_s: float) -> None:
        self._server, self._folder = server, folder
        self._rounds, self._quiet_s = rounds, quiet_s
        self._begun_ns = time.monotonic_ns()
        self.said = {"default": Said(), GUEST: Said()}
        self.rows: list[dict[str, Any]] = []
        self.took_ms: dict[str, list[float]] = {"load": [], "replace": [], "unload": []}
        self.wrong: list[str] = []
        self.versions = 0
        self.rounds_s: tuple[float, float] = (0.0, 0.0)

    @property
    def _now_s(self) -> float:
        return round((time.monotonic_ns() - self._begun_ns) / NS_PER_S, 2)

    # ------------------------------------------------------------ who speaks
    async def speak(self, avatar: str, said: Said) -> None:
        """Say the same over and over until cancelled."""
        pcm = shipped_recording()[: int(SAID_S * 16_000)].tobytes()
        name = "" if avatar == "default" else avatar
        async with lipsync_fast.connect(self._server.url, avatar=name) as session:
            while True:
                async with trio.open_nursery() as nursery:

                    async def send() -> None:
                        begun = time.monotonic_ns()
                        for number, start in enumerate(range(0, len(pcm), 2 * PIECE)):
                            due = begun + piece_due_ns(number)
                            await trio.sleep(max(0, due - time.monotonic_ns()) / NS_PER_S)
                            await session.send(pcm[start : start + 2 * PIECE])
                        await session.end_utterance()

                    nursery.start_soon(send)
                    came = late = 0
                    async for event in session:
                        if isinstance(event, VideoFrame) and event.utterance:
                            came += 1
                            late += event.repeated
                            if event.repeated:
                                said.late_s.append(self._now_s)
                        elif isinstance(event, UtteranceEnded):
                            break
                expected = frame_count(len(pcm) // 2)
                said.add("frames", came)
                said.add("late", late)
                said.add("lost", expected - came)

    # ------------------------------------------------------------ what is changed
    def _replace(self) -> None:
        made = self._folder / ".new"
        shutil.copy(shipped_folder() / "demo.lsa", made)
        os.replace(made, self._folder / f"{GUEST}.lsa")

    async def _change(self, kind: str, action: Any, expected: str) -> None:
        def change() -> tuple[str, int]:
            with ControlClient(self._server.folder) as client:
                done = client.change(action, GUEST)
                return f"{done.state} {done.reason}".strip(), done.version

        begun = time.monotonic_ns()
        state, version = await trio.to_thread.run_sync(change)
        self.took_ms[kind].append(round((time.monotonic_ns() - begun) / 1e6, 1))
        self.versions = max(self.versions, version)
        if state != expected:
            self.wrong.append(f"{self._now_s} s: {kind}: {state}")

    async def _visit(self, served: bool) -> None:
        try:
            async with lipsync_fast.connect(self._server.url, avatar=GUEST) as session:
                async for event in session:
                    if isinstance(event, VideoFrame):
                        break
        except SessionError as error:
            if served or error.code != "unknown_avatar":
                self.wrong.append(f"{self._now_s} s: a visitor: {error}")
            return
        if not served:
            self.wrong.append(f"{self._now_s} s: a visitor was not refused")

    async def _all_rounds(self) -> None:
        for number in range(self._rounds):
            for kind in ("load", "replace"):
                await trio.to_thread.run_sync(self._replace)
                await self._change(kind, "load", "loaded")
            if number % 10 == 0:
                await self._visit(served=True)
            await self._change("unload", "unload", "unloaded")
            if number % 10 == 0:
                await self._visit(served=False)

    # ------------------------------------------------------------ all of it
    async def _watch(self) -> None:
        while True:
            status = await trio.to_thread.run_sync(self._server.status)
            row: dict[str, Any] = {"s": self._now_s, "roles": {}}
            for role, members in roles(status).items():
                used = [u for u in map(usage, members) if u is not None]
                if used:
                    row["roles"][role] = msgspec.to_builtins(used[0])
            row["versions"] = sum(a.name == GUEST and a.version > 0 for a in status.avatars)
            self.rows.append(row)
            await trio.sleep(SAMPLE_S)

    async def run(self) -> None:
        """Quiet, rounds, quiet."""
        async with trio.open_nursery() as nursery:
            for avatar, said in self.said.items():
                nursery.start_soon(self.speak, avatar, said)
            await trio.sleep(self._quiet_s)
            nursery.start_soon(self._watch)
            self._enter("quiet")
            await trio.sleep(self._quiet_s)
            begun = self._now_s
            self._enter("rounds")
            await self._all_rounds()
            self._enter("quiet")
            self.rounds_s = begun, self._now_s
            await trio.sleep(self._quiet_s)
            nursery.cancel_scope.cancel()

    def _enter(self, phase: str) -> None:
        for said in self.said.values():
            said.phase = phase


def growth(rows: list[dict[str, Any]], rounds_s: tuple[float, float]) -> dict[str, dict[str, Any]]:
    """How each process grows: what it had in the second quarter of the rounds and in the last."""
    begun, ended = rounds_s
    quarter = (ended - begun) / 4
    found: dict[str, dict[str, Any]] = {}
    for role in rows[-1]["roles"]:
        found[role] = {}
        for what, (most, share) in MAY_GROW.items():

            def median(first: float, last: float, role: str = role, what: str = what) -> float:
                there = [
                    row["roles"][role][what]
                    for row in rows
                    if first <= row["s"] <= last and role in row["roles"]
                ]
                return statistics.median(there) if there else 0.0

            before, after = (
                median(begun + quarter, begun + 2 * quarter),
                median(ended - quarter, ended),
            )
            flat = after - before <= max(most, share * before)
            found[role][what] = {"second quarter": before, "last quarter": after, "flat": flat}
    return found


def _late(churn: Churn, phase: str) -> float:
    """The share of spoken frames that came late."""
    frames = sum(said.frames.get(phase, 0) for said in churn.said.values())
    return sum(said.late.get(phase, 0) for said in churn.said.values()) / max(1, frames)


def measure(rounds: int, quiet_s: float) -> dict[str, Any]:
    """Run it; what the report holds."""
    with tempfile.TemporaryDirectory(prefix="churn-") as name:
        folder = Path(name)
        shutil.copy(shipped_folder() / "demo.lsa", folder / f"{GUEST}.lsa")
        config: dict[str, Any] = {
            "avatars": {"folders": [name]},
            "live": {"speakers": 2, "half_rate": False},
            "utterances": {"disk_mb": 0},
        }
        with LocalServer(config) as server:
            churn = Churn(server, folder, rounds, quiet_s)
            trio.run(churn.run)
    grown = growth(churn.rows, churn.rounds_s)
    said = {name: msgspec.to_builtins(each) for name, each in churn.said.items()}
    lost = sum(s.lost.get("rounds", 0) for s in churn.said.values())
    late = {phase: _late(churn, phase) for phase in ("quiet", "rounds")}
    return {
        "machine": machine(),
        "rounds": rounds,
        "rounds_s": churn.rounds_s,
        "versions": churn.versions,
        "said": said,
        "late_share": late,
        "took_ms": {
            kind: {"median": statistics.median(each), "most": max(each)}
            for kind, each in churn.took_ms.items()
        },
        "growth": grown,
        "wrong": churn.wrong,
        "good": not churn.wrong
        and lost == 0
        and late["rounds"] <= max(late["quiet"], MAY_BE_LATE)
        and all(each["flat"] for role in grown.values() for each in role.values()),
        "churn": churn.rows,
    }


def main() -> None:
    """Measure, write, say."""
    args = program.options(__doc__, rounds=200, quiet_s=20.0, out=Path("bench/results/live"))
    result = measure(args.rounds, args.quiet_s)
    path = args.out / "avatar_churn.json"
    program.write(path, result)
    draw(path)
    print(json.dumps({k: v for k, v in result.items() if k not in ("churn", "machine")}, indent=1))
    sys.exit(0 if result["good"] else 1)


if __name__ == "__main__":
    main()
