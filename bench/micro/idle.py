# SPDX-License-Identifier: Apache-2.0
"""What a server costs while nobody speaks, nor is there: processor time of each of its processes.

    python bench/micro/idle.py [--seconds 30] [--beside PYTHON] [--out FILE]

``lipsync-fast serve`` with the demo avatar and all defaults, once its spare has prepared all that
it will. Beside it, at the same time, the server of another environment may be measured, by its
interpreter: that of an earlier release, say. Given are hundredths of one processor, and how often a
second threads of the process were woken.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.processes import pids, usage
from lipsync_fast.client.local import LocalServer

CALM = 0.25
"""Of one processor: a server that uses less has prepared all that it will."""
LOOK_S = 3.0
PATIENCE_S = 300.0
Found = dict[str, tuple[float, int]]
"""Processor seconds and voluntary changes of context, by process."""


def used(server: LocalServer) -> Found:
    """What each process has used so far, by its name."""
    found: Found = {}
    for name, pid in pids(server.status()).items():
        about = usage(pid)
        if about is None:
            continue
        switches = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            lines = (task / "status").read_text().splitlines()
            switches += int(next(x for x in lines if x.startswith("voluntary")).split()[1])
        found[name] = about.cpu_s, switches
    return found


def until_calm(server: LocalServer) -> None:
    """Wait until the spare is there, and nothing is prepared any more."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        before = used(server)
        time.sleep(LOOK_S)
        after = used(server)
        spent = sum(seconds - before.get(name, (0.0, 0))[0] for name, (seconds, _) in after.items())
        spare = any(engine.state == "spare" for engine in server.status().engines)
        if spare and before.keys() == after.keys() and spent < CALM * LOOK_S:
            return
    raise SystemExit(f"the server is not calm after {PATIENCE_S:g} s")


def shares(before: Found, after: Found, seconds: float) -> dict[str, dict[str, float]]:
    """Of each process, hundredths of a processor and times woken a second; and of all of them."""
    rows = {
        name: {
            "percent": (after[name][0] - spent) / seconds * 100,
            "woken_per_s": (after[name][1] - switches) / seconds,
        }
        for name, (spent, switches) in before.items()
    }
    keys = ("percent", "woken_per_s")
    rows["all"] = {key: sum(row[key] for row in rows.values()) for key in keys}
    return {name: {key: round(row[key], 2) for key in keys} for name, row in rows.items()}


def main() -> None:
    """Measure and print."""
    args = program.options(__doc__, seconds=30.0, beside=None, out=None)
    interpreters = {"here": Path(sys.executable)}
    if args.beside is not None:
        interpreters["beside"] = args.beside
    with contextlib.ExitStack() as running:
        servers = {
            name: running.enter_context(
                LocalServer(command=(str(python), "-P", "-m", "lipsync_fast", "serve"))
            )
            for name, python in interpreters.items()
        }
        for server in servers.values():
            until_calm(server)
        before, begun = {name: used(server) for name, server in servers.items()}, time.monotonic()
        time.sleep(args.seconds)
        after, took = {name: used(each) for name, each in servers.items()}, time.monotonic() - begun
    found = {name: shares(before[name], after[name], took) for name in servers}
    for name, rows in found.items():
        print(name)
        for process, row in rows.items():
            print(
                f"  {process:12s} {row['percent']:6.2f} %  woken {row['woken_per_s']:6.1f} a second"
            )
    program.keep(args.out, seconds=args.seconds, **found)


if __name__ == "__main__":
    main()
