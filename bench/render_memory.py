# SPDX-License-Identifier: Apache-2.0
"""Memory of ``lipsync-fast render`` over a long recording: does it grow?

    python bench/render_memory.py [--minutes 60] [--avatar demo] [--json FILE]

Makes a recording of that length in a temporary folder, renders it to MP4 in a process of its own,
and reads that process's resident memory every second (Linux). Prints its median in each tenth of
the run, and how much the last tenth differs from the second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np

RATE = 16_000


def write_recording(path: Path, minutes: float) -> None:
    """A tone that comes and goes with noise on it, 16 bits, written minute by minute."""
    rng = np.random.default_rng(1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        left = round(minutes * 60 * RATE)
        while left > 0:
            n = min(left, 60 * RATE)
            t = np.arange(n) / RATE
            sound = 0.3 * np.sin(2 * np.pi * 180 * t) * np.sin(2 * np.pi * 1.7 * t)
            sound += 0.02 * rng.standard_normal(n)
            file.writeframes((sound * 32767).astype("<i2").tobytes())
            left -= n


def resident_mb(pid: int) -> float | None:
    """Resident memory of a process in MB; None when it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    line = next((x for x in status.splitlines() if x.startswith("VmRSS:")), None)
    return None if line is None else int(line.split()[1]) / 1024


def main() -> None:
    """Measure and report; exit status 1 when the render fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--avatar", default="demo")
    parser.add_argument("--json", type=Path, help="write the curve here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "long.wav"
        write_recording(sound, args.minutes)
        out = str(Path(folder) / "long.mp4")
        command = [sys.executable, "-m", "lipsync_fast", "render", str(sound), "-o", out]
        command += ["--avatar", args.avatar, "--quiet"]
        begun, curve = time.monotonic(), list[tuple[float, float]]()
        with subprocess.Popen(command) as process:
            while process.poll() is None:
                found = resident_mb(process.pid)
                if found is not None:
                    curve.append((time.monotonic() - begun, found))
                time.sleep(1)
        wall = time.monotonic() - begun
    if process.returncode:
        sys.exit(f"render ended with {process.returncode}")
    size = max(1, len(curve) // 10)
    tenths = [statistics.median(m for _, m in curve[i * size : (i + 1) * size]) for i in range(10)]
    report = {
        "minutes": args.minutes,
        "avatar": args.avatar,
        "wall_s": round(wall, 1),
        "peak_mb": round(max(m for _, m in curve), 1),
        "median_mb_by_tenth": [round(m, 1) for m in tenths],
        "growth_mb_second_to_last_tenth": round(tenths[-1] - tenths[1], 1),
    }
    print(json.dumps(report, indent=1))
    if args.json:
        args.json.write_text(
            json.dumps({**report, "curve_s_mb": curve[:: max(1, len(curve) // 300)]})
        )


if __name__ == "__main__":
    main()
