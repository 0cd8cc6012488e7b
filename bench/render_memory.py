# SPDX-License-Identifier: Apache-2.0
"""Memory of ``lipsync-fast render`` over a long recording: does it grow?

    python bench/render_memory.py [--minutes 60] [--avatar demo] [--json FILE] [--plot PNG]

Makes a recording of that length in a temporary folder, renders it to MP4 in a process of its own,
and reads that process's resident memory every second (Linux). Prints its median in each tenth of
the run, and how much the last tenth differs from the second. Ctrl-C ends it early; the report
then says so. ``--json`` writes the report and the curve, ``--plot`` draws it; ``--draw JSON --plot
PNG`` draws an earlier report, and measures nothing.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.processes import usage
from lipsync_fast.timing import SAMPLE_RATE


def write_recording(path: Path, minutes: float) -> None:
    """A tone that comes and goes with noise on it, 16 bits, written minute by minute."""
    rng = np.random.default_rng(1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        left = round(minutes * 60 * SAMPLE_RATE)
        while left > 0:
            n = min(left, 60 * SAMPLE_RATE)
            t = np.arange(n) / SAMPLE_RATE
            sound = 0.3 * np.sin(2 * np.pi * 180 * t) * np.sin(2 * np.pi * 1.7 * t)
            sound += 0.02 * rng.standard_normal(n)
            file.writeframes((sound * 32767).astype("<i2").tobytes())
            left -= n


def watch(command: list[str]) -> tuple[list[tuple[float, float]], float, bool]:
    """Run a render: (seconds, MB) as it goes, wall seconds, and whether it came to its end.

    Raises:
        SystemExit: the render failed.
    """
    begun, curve, whole = time.monotonic(), list[tuple[float, float]](), True
    with subprocess.Popen(command) as process:
        try:
            while process.poll() is None:
                found = usage(process.pid)
                if found is not None:
                    curve.append((time.monotonic() - begun, found.rss_mb))
                time.sleep(1)
        except KeyboardInterrupt:
            whole = False
            process.terminate()
    if whole and process.returncode:
        sys.exit(f"render ended with {process.returncode}")
    return curve, time.monotonic() - begun, whole


def draw(report: dict[str, Any], path: Path) -> None:
    """The curve as a picture."""
    width, height, left, bottom = 900, 320, 70, 40
    picture = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    curve: list[tuple[float, float]] = report["curve_s_mb"]
    last, top = curve[-1][0], 1.25 * report["peak_mb"]

    def at(seconds: float, mb: float) -> tuple[float, float]:
        across, up = seconds / last, mb / top
        return left + across * (width - left - 20), height - bottom - up * (height - bottom - 30)

    step = 10 ** len(str(int(top / 5))) // 2 or 1
    for mb in range(0, int(top) + 1, step):
        pen.line([at(0, mb), at(last, mb)], "#dddddd")
        pen.text((8, at(0, mb)[1] - 8), f"{mb} MB", "black", font)
    for part in range(7):
        x, y = at(last * part / 6, 0)
        pen.text((x - 18, y + 8), f"{last * part / 6 / 60:.0f} min", "black", font)
    pen.line([at(s, m) for s, m in curve], "#c03030", 2)
    title = f"Resident memory while {report['minutes']:g} min of sound are rendered"
    if not report["whole"]:
        title += ", stopped early"
    pen.text((left, 6), f"{title} (avatar {report['avatar']})", "black", font)
    picture.save(path)


def main() -> None:
    """Measure and report; exit status 1 when the render fails."""
    args = program.options(__doc__, minutes=60.0, avatar="demo", json=None, plot=None, draw=None)
    if args.draw is not None:
        draw(json.loads(args.draw.read_text()), args.plot)
        return
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "long.wav"
        write_recording(sound, args.minutes)
        out = str(Path(folder) / "long.mp4")
        command = [sys.executable, "-P", "-m", "lipsync_fast", "render", str(sound), "-o", out]
        command += ["--avatar", args.avatar, "--quiet"]
        curve, wall, whole = watch(command)
    size = max(1, len(curve) // 10)
    tenths = [statistics.median(m for _, m in curve[i * size : (i + 1) * size]) for i in range(10)]
    report = {
        "minutes": args.minutes,
        "whole": whole,
        "avatar": args.avatar,
        "wall_s": round(wall, 1),
        "peak_mb": round(max(m for _, m in curve), 1),
        "median_mb_by_tenth": [round(m, 1) for m in tenths],
        "growth_mb_second_to_last_tenth": round(tenths[-1] - tenths[1], 1),
    }
    print(json.dumps(report, indent=1))
    points = [(round(s, 1), round(m, 1)) for s, m in curve[:: max(1, len(curve) // 300)]]
    if args.json:
        program.write(args.json, {**report, "curve_s_mb": points}, indent=None)
    if args.plot:
        draw({**report, "curve_s_mb": points}, args.plot)


if __name__ == "__main__":
    main()
