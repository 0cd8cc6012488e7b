# SPDX-License-Identifier: Apache-2.0
"""Live sessions on a real server over real sockets: latency, lost frames, gaps, CPU, memory.

    python bench/live.py [--sessions 2] [--minutes 10] [--out DIR]
    python bench/live.py --kill-engine 20 [--engines 2]     # kill -9 while they speak
    python bench/live.py --find-capacity                    # speakers until one is refused

Starts ``lipsync-fast serve`` on free ports of this machine (or uses ``--url``), lets each session
speak the shipped recording again and again in pieces of 20 ms on a clock of its own, and notes
what comes. The latency of a spoken frame runs from the moment at which its last needed sample was
due to be sent to the moment at which its bytes are here. One frame in ``--compare-every`` is
compared, byte for byte, with what rendering the same sound gives. Writes live.json, live.md and,
where matplotlib is installed, live.png into ``--out``; plots.py draws it later from live.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import trio
from plots import draw

from lipsync_fast.audio.windows import AudioWindow, frame_count
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.load import Figures, Notes, Talker, figures, percentiles
from lipsync_fast.benchmark.processes import pids, usage
from lipsync_fast.benchmark.speech import Expected, shipped_recording
from lipsync_fast.client.local import LocalServer
from lipsync_fast.errors import LipsyncError
from lipsync_fast.timing import NS_PER_S, SAMPLE_RATE

AFTER_KILL_MS = 3_000
"""A gap that ends within this after a kill is counted as its doing."""
WINDOW_S = 5
"""Seconds of one point of the plot."""
CAPACITY_S = 20.0
"""How long each number of speakers is held when looking for the capacity."""


class Watch:
    """Uses of the server's processes, sampled every second; kills engines when told to."""

    def __init__(self, server: LocalServer | None) -> None:
        self._server = server
        self.cpu_s: dict[str, float] = {}
        self.curve: list[dict[str, Any]] = []
        self.kills: list[dict[str, Any]] = []
        self.status: dict[str, Any] = {}

    async def run(self, begin_ns: int) -> None:
        """Sample until cancelled."""
        first: dict[str, float] = {}
        while self._server is not None:
            try:
                status = await trio.to_thread.run_sync(self._server.status)
            except LipsyncError as error:
                print(f"no status: {error}", file=sys.stderr)
                return
            self.status = msgspec.to_builtins(status)
            row: dict[str, Any] = {"s": round((time.monotonic_ns() - begin_ns) / NS_PER_S, 1)}
            for name, pid in pids(status).items():
                found = usage(pid)
                if found is not None:
                    born = first.setdefault(name, found.cpu_s)
                    self.cpu_s[name] = round(found.cpu_s - born, 2)
                    row[name] = {"cpu_s": found.cpu_s, "rss_mb": found.rss_mb}
            self.curve.append(row)
            await trio.sleep(1)

    async def kill(self, times_ns: list[int]) -> None:
        """kill -9 the engine that works, at each of these moments."""
        for at in times_ns:
            await trio.sleep(max(0, at - time.monotonic_ns()) / NS_PER_S)
            assert self._server is not None
            status = await trio.to_thread.run_sync(self._server.status)
            ready = [e for e in status.engines if e.state == "ready" and e.pid]
            if not ready:
                self.kills.append({"ns": time.monotonic_ns(), "engine": None})
                continue
            # Several share the work; the one that has the most to do hurts most.
            engine = max(ready, key=lambda e: e.load.waiting + e.load.in_flight)
            os.kill(engine.pid, signal.SIGKILL)
            self.kills.append({"ns": time.monotonic_ns(), "engine": engine.name})


async def measure(
    args: argparse.Namespace, url: str, watch: Watch, sessions: int, seconds: float
) -> list[Notes]:
    """Let so many sessions speak for so long."""
    pcm = shipped_recording(args.seconds)
    talkers = [
        Talker(n, url, args.avatar, pcm, args.pause, args.compare_every) for n in range(sessions)
    ]
    async with trio.open_nursery() as nursery:
        begin = time.monotonic_ns() + int(args.warm_up * NS_PER_S)
        end = begin + int(seconds * NS_PER_S)
        nursery.start_soon(watch.run, begin)
        if args.kill_engine:
            step = (end - begin) // (args.kill_engine + 1)
            nursery.start_soon(
                watch.kill, [begin + step * (k + 1) for k in range(args.kill_engine)]
            )
        async with trio.open_nursery() as speaking:
            for talker in talkers:
                # Not in step with each other: people are not.
                offset = int(talker.notes.number * NS_PER_S * 0.33)
                speaking.start_soon(talker.run, begin + offset, end, trio.Event())
        nursery.cancel_scope.cancel()
    return [talker.notes for talker in talkers]


def compared(args: argparse.Namespace, notes: list[Notes]) -> dict[str, int]:
    """How many sampled frames are what ``render`` makes, byte for byte."""
    samples = [s for n in notes for s in n.samples]
    if not samples:
        return {"compared": 0, "different": 0}
    expected = Expected(args.avatar, shipped_recording(args.seconds))
    try:
        different = sum(expected.jpeg(s.frame, s.index) != s.jpeg for s in samples)
    finally:
        expected.close()
    return {"compared": len(samples), "different": different}


def report(found: Figures, watch: Watch, begin_ns: int, wall_s: float) -> dict[str, Any]:
    """All figures, ready to be written."""
    own = time.process_time()
    kills = [
        {
            "s": round((kill["ns"] - begin_ns) / NS_PER_S, 1),
            "engine": kill["engine"],
            "gap_ms": round(
                max(
                    (ms for at, ms in found.gaps if 0 <= at - kill["ns"] <= AFTER_KILL_MS * 1e6),
                    default=0.0,
                ),
                1,
            ),
            "late": sum(0 <= at - kill["ns"] <= AFTER_KILL_MS * 1e6 for at in found.late_at),
        }
        for kill in watch.kills
    ]
    return {
        **program.about_this_run(),
        "sessions": found.sessions,
        "wall_s": round(wall_s, 1),
        "utterances": found.utterances,
        "spoken_frames_expected": found.expected,
        "shown": found.shown,
        "late": found.late,
        "lost": found.lost,
        "twice": found.twice,
        "out_of_order": found.out_of_order,
        "unknown": found.unknown,
        "dropped_by_server": found.server_dropped,
        "skipped_for_slow_reading": found.skipped,
        "overloaded": found.overloaded,
        "errors": found.errors[:50],
        "frames_in_all": found.frames,
        "megabytes": found.megabytes,
        "latency_ms": found.latency_ms(),
        "gap_ms": found.gap_ms(),
        "gaps_over": {
            f"{limit} ms": sum(ms > limit for _, ms in found.gaps) for limit in (80, 120, 200, 500)
        },
        "kills": kills,
        "gap_after_kill_ms": percentiles([k["gap_ms"] for k in kills]),
        "cpu_s": watch.cpu_s,
        "cpu_cores_used": round(sum(watch.cpu_s.values()) / wall_s, 2) if wall_s else None,
        "generator": {
            "cpu_s": round(own, 2),
            "cores_used": round(own / wall_s, 3) if wall_s else None,
            "sent_late_by_at_most_ms": round(found.send_lag_ms, 1),
        },
        "server_latency_ms": [f["load"]["latency_ms"] for f in watch.status.get("fronts", [])],
        "speakers": watch.status.get("speakers"),
        "capacity_frames_per_s": watch.status.get("capacity"),
    }


def markdown(result: dict[str, Any]) -> str:
    """The report for people."""
    about, latency, gap = result["machine"], result["latency_ms"], result["gap_ms"]
    lines = [
        f"# {result['sessions']} live sessions, {result['wall_s'] / 60:.1f} minutes",
        "",
        f"`{result['command']}`, lipsync-fast {result['version']}, on {about['cores']} cores of "
        f"{about['processor']}, Python {about['python']}; the load generator shares them "
        f"(load average at the end {about['load_average'][0]}).",
        "",
        "| what | figure |",
        "|---|---|",
        f"| spoken frames: expected, shown | {result['spoken_frames_expected']}, "
        f"{result['shown']} |",
        f"| late (another picture shown), lost, twice, out of order | {result['late']}, "
        f"{result['lost']}, {result['twice']}, {result['out_of_order']} |",
    ]
    for name, values in (
        ("from a frame's last needed sample to its bytes, ms", latency),
        ("between two frames, ms", gap),
    ):
        lines.append(f"| {name} | " + ", ".join(f"{k} {v}" for k, v in values.items()) + " |")
    over = ", ".join(f"{count} over {limit}" for limit, count in result["gaps_over"].items())
    pictures = result["pictures"]
    lines += [
        f"| gaps | {over} |",
        f"| pictures compared with render, different | {pictures['compared']}, "
        f"{pictures['different']} |",
        f"| refused, skipped for slow reading, errors | {result['overloaded']}, "
        f"{result['skipped_for_slow_reading']}, {len(result['errors'])} |",
        f"| cores used: server, load generator | {result['cpu_cores_used']}, "
        f"{result['generator']['cores_used']} |",
    ]
    if result["kills"]:
        after = ", ".join(f"{k} {v}" for k, v in result["gap_after_kill_ms"].items())
        lines.append(f"| largest gap after each of {len(result['kills'])} kills, ms | {after} |")
    return "\n".join(lines) + "\n"


def windows(found: Figures, begin_ns: int) -> list[dict[str, float]]:
    """Latencies and gaps in each ``WINDOW_S``, for the plot."""
    rows: dict[int, tuple[list[float], list[float]]] = {}
    for place, values in enumerate((found.latencies, found.gaps)):
        for at, ms in values:
            window = int((at - begin_ns) / NS_PER_S // WINDOW_S)
            rows.setdefault(window, ([], []))[place].append(ms)
    late = Counter(int((at - begin_ns) / NS_PER_S // WINDOW_S) for at in found.late_at)
    return [
        {"s": window * WINDOW_S}
        | {f"latency_{k}": v for k, v in percentiles(latencies).items()}
        | {"gap_most": round(max(gaps, default=0.0), 1), "late": late[window]}
        for window, (latencies, gaps) in sorted(rows.items())
    ]


def find_capacity(args: argparse.Namespace, server: LocalServer) -> None:
    """One more speaker each time, until one is refused."""
    steps: list[dict[str, Any]] = []
    status = server.status()
    for sessions in range(1, 1000):
        watch = Watch(server)
        notes = trio.run(measure, args, server.url, watch, sessions, args.minutes * 60)
        found = figures(notes, _window(args.avatar), _frames(args))
        steps.append(
            {
                "sessions": sessions,
                "refused": found.overloaded,
                "expected": found.expected,
                "late": found.late,
                "lost": found.lost,
                "latency_ms": found.latency_ms(),
            }
        )
        print(json.dumps(steps[-1]))
        if found.overloaded:
            break
    result = {
        **program.about_this_run(),
        "capacity_frames_per_s": status.capacity,
        "speakers": status.speakers,
        "steps": steps,
    }
    _write(args.out, "capacity.json", json.dumps(result, indent=1) + "\n")


def _window(avatar: str) -> AudioWindow:
    with AvatarPackage.open(AvatarLibrary().find(avatar)) as package:
        return package.manifest.audio


def _frames(args: argparse.Namespace) -> int:
    return frame_count(len(shipped_recording(args.seconds)))


def _write(folder: Path | None, name: str, text: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def server_config(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration of a server of our own."""
    engines: dict[str, Any] = {"per_gpu": args.engines, "spares": args.spares}
    if args.threads:
        engines["threads"] = args.threads
    live: dict[str, Any] = {"half_rate": False}  # frames left out on purpose would count as lost
    if args.speakers:
        live["speakers"] = args.speakers
    return {"engines": engines, "live": live, "log": {"level": "warning"}} | {
        "utterances": {"disk_mb": 0}
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--sessions", type=int, default=2, help="that speak at the same time")
    add("--minutes", type=float, help="how long: 10, or a third for each number of speakers")
    add("--avatar", default="demo")
    add("--seconds", type=float, help="of the recording; all of it by default")
    add(
        "--warm-up", type=float, default=20.0, metavar="SECONDS",
        help="before the first utterance: engines prepare an avatar's frames when they are idle",
    )  # fmt: skip
    add("--pause", type=float, default=1.0, help="seconds between two utterances")
    add("--kill-engine", type=int, default=0, metavar="N", help="kill -9 an engine N times")
    add("--engines", type=int, default=1, help="of the server that is started")
    add("--spares", type=int, default=1, help="engines kept ready")
    add("--threads", type=int, default=0, help="of each engine; the server's choice by default")
    add("--speakers", type=int, default=0, help="admitted at once; measured by default")
    add("--find-capacity", action="store_true", help="raise speakers until one is refused")
    add("--compare-every", type=int, default=100, help="one frame in so many; 0 for none")
    add("--url", help="of a server that runs already (no kills, no CPU and memory)")
    add("--out", type=Path, help="folder for the reports")
    args = parser.parse_args()
    if args.minutes is None:
        args.minutes = CAPACITY_S / 60 if args.find_capacity else 10.0
    if args.url and (args.kill_engine or args.find_capacity):
        parser.error("--kill-engine and --find-capacity need a server of their own")
    length = len(shipped_recording(args.seconds)) / SAMPLE_RATE
    if args.minutes * 60 < length:
        parser.error(f"--minutes: shorter than one utterance ({length:.1f} s); see --seconds")
    return args


def main() -> int:
    """Measure and report; exit status 1 where a frame was late, lost, wrong or not in order."""
    args = parsed()
    with ExitStack() as stack:
        server = None
        if not args.url:
            server = stack.enter_context(LocalServer(server_config(args)))
        if args.find_capacity:
            assert server is not None
            find_capacity(args, server)
            return 0
        url = args.url or (server.url if server is not None else "")
        watch, begin = Watch(server), time.monotonic_ns() + int(args.warm_up * NS_PER_S)
        notes = trio.run(measure, args, url, watch, args.sessions, args.minutes * 60)
        wall = (time.monotonic_ns() - begin) / NS_PER_S
        found = figures(notes, _window(args.avatar), _frames(args))
        result = report(found, watch, begin, wall)
        if server is not None:
            _write(args.out, "live.log", server.log())
    result["pictures"] = compared(args, notes)
    whole = result | {"windows": windows(found, begin), "curve": watch.curve}
    _write(args.out, "live.json", json.dumps(whole) + "\n")
    _write(args.out, "live.md", markdown(result))
    if args.out is not None:
        draw(args.out / "live.json")
    print(markdown(result))
    for error in result["errors"]:
        print(error, file=sys.stderr)
    bad = ("late", "lost", "twice", "out_of_order", "unknown", "overloaded", "errors")
    return 1 if any(result[k] for k in bad) or result["pictures"]["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
