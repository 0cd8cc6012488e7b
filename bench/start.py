# SPDX-License-Identifier: Apache-2.0
"""How long after ``lipsync-fast serve`` a client has its first frames.

    python bench/start.py [--runs 7] [--out DIR]

Each run starts a server on a port that is free, tries to connect from then on, asks for a session
and sends a second of sound at once: the first frame is idle, the first spoken one comes out of an
engine. Writes start.json and prints medians, in seconds from the start of the process.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from websockets.sync.client import connect

from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.processes import machine
from lipsync_fast_client.protocol import (
    MediaType,
    SessionStart,
    UtteranceEnd,
    encode,
    unpack_media,
)

SOUND = bytes(2 * 16_000)
GIVE_UP_S = 60.0


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_once(folder: Path) -> dict[str, float]:
    """Start, be served, stop: seconds to each event."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "lipsync_fast", "serve", "--port", str(port)]
    command += ["--http-port", "0", "--folder", str(folder), "--log-level", "error"]
    begun = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LIPSYNC_FAST_UTTERANCES_DISK_MB": "0"},
    )
    seen: dict[str, float] = {}
    try:
        while True:
            try:
                client = connect(
                    f"ws://127.0.0.1:{port}/", subprotocols=["lipsync.v1"], open_timeout=10
                )
                break
            except OSError:
                if time.monotonic() - begun > GIVE_UP_S:
                    raise
                time.sleep(0.005)
        with client:
            seen["connected"] = time.monotonic() - begun
            client.send(encode(SessionStart()))
            client.send(SOUND)
            client.send(encode(UtteranceEnd()))
            while "first spoken frame" not in seen:
                message = client.recv(timeout=GIVE_UP_S)
                now = time.monotonic() - begun
                if isinstance(message, str):
                    continue
                header, _ = unpack_media(message)
                if header.type == MediaType.FRAME:
                    seen.setdefault("first frame", now)
                    if header.utterance:
                        seen["first spoken frame"] = now
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    return seen


def main() -> None:
    """Run, sum up, write."""
    args = program.options(__doc__, runs=7, out=Path("bench/results"))
    with tempfile.TemporaryDirectory(prefix="lsf-") as folder:
        runs = [run_once(Path(folder) / f"run{k}") for k in range(args.runs)]
    medians = {name: statistics.median(r[name] for r in runs) for name in runs[0]}
    load = os.getloadavg()[0]
    result = {"machine": machine(), "load_average": load, "medians_s": medians, "runs_s": runs}
    program.write(args.out / "start.json", result)
    for name, seconds in medians.items():
        spread = ", ".join(f"{r[name]:.2f}" for r in sorted(runs, key=lambda r: r[name]))
        print(f"{name:>20}: {seconds:.2f} s ({spread})")


if __name__ == "__main__":
    main()
