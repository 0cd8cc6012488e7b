# SPDX-License-Identifier: Apache-2.0
"""What the front costs: its processor time a frame, sound in and pictures out included.

    python bench/micro/front.py [--seconds 10] [--rounds 3] [--out FILE]

The real server over real sockets, with an engine that has every picture at once (60 kB, always the
same): so the front works as it does beside a fast device, and its own time is what is measured.
Sessions in real time, which send a piece of sound each 20 ms, and sessions that take frames as fast
as they come. The load generator is a process of its own on the same processors. The floor is the
bare send of bench/micro/send.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from instant import JPEG, Instant

from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.speech import shipped_recording
from lipsync_fast.client.local import LocalServer

LIVE, BURST = (4, 16, 48), 4


def engine() -> None:
    """An engine process, with that backend."""
    from lipsync_fast.engine import process
    from lipsync_fast.engine.scheduler import Scheduler
    from lipsync_fast.engine.splice import FrameEncoder

    process.create_scheduler = lambda spec: Scheduler(Instant(), FrameEncoder())
    process.main()


def serve(config: Path) -> int:
    """The server, with such engines."""
    from lipsync_fast.config_load import load
    from lipsync_fast.logs import setup_logs
    from lipsync_fast.supervisor.children import Role, own_command
    from lipsync_fast.supervisor.launch import serve as run

    def command(role: Role) -> list[str]:
        return own_command(role) if role == "front" else [sys.executable, __file__, "engine"]

    loaded = load(config).config
    setup_logs(loaded.log, "supervisor")
    return run(loaded, command=command)


def measured(seconds: float) -> dict[str, dict[str, float]]:
    """One round: frames a second, and microseconds of processor time a frame of each process."""
    from lipsync_fast.benchmark.measure import live, throughput

    pcm = shipped_recording(4.0)
    found = {}
    config = {
        "engines": {"spares": 0},
        "live": {"speakers": 1000, "half_rate": False},
        "log": {"level": "error"},
        "utterances": {"disk_mb": 0},
    }
    command = [sys.executable, __file__, "serve"]
    with LocalServer(config, command=command) as server:
        rows = {
            f"{sessions} in real time": live(server, "", pcm, seconds, sessions=sessions)
            for sessions in LIVE
        }
        rows[f"{BURST} as fast as it goes"] = throughput(server, "", pcm, seconds, sessions=BURST)
        for name, row in rows.items():
            if row.late or row.lost or row.frames == 0:
                print(f"{name}: {row.late} late, {row.lost} lost of {row.expected}")
            cpu = {who: round(1e3 * ms, 1) for who, ms in row.cpu_ms_per_frame.items()}
            found[name] = {"frames_per_s": row.frames_per_s, **cpu}
    return found


def main() -> int:
    """Measure and print."""
    if sys.argv[1:] == ["engine"]:
        engine()
    if sys.argv[1:2] == ["serve"]:
        return serve(Path(sys.argv[3]))
    args = program.options(__doc__, seconds=10.0, rounds=3, out=None)
    rounds = [measured(args.seconds) for _ in range(args.rounds)]
    medians = program.medians(rounds)
    for name, values in medians.items():
        rest = ", ".join(f"{who} {us:.0f}" for who, us in values.items() if who != "frames_per_s")
        print(f"{name:24s} {values['frames_per_s']:7.0f} frames/s; us a frame: {rest}")
    program.keep(args.out, size=len(JPEG), medians=medians, rounds=rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
