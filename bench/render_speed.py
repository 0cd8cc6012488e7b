# SPDX-License-Identifier: Apache-2.0
"""Speed of ``lipsync-fast render`` on a short recording, all of it counted, and where time goes.

    python bench/render_speed.py [--seconds 4] [--runs 5] [--avatar demo] [--json FILE]

Renders the first seconds of the shipped recording to MP4, each time in a process of its own: from
the process's start to its end, interpreter, networks' loading and encoding included. Then renders
once more in this process, and adds up the processor time of each stage. x264 works in threads of
its own, which no stage sees: they are what is left of the process's time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.processes import machine
from lipsync_fast.cli.demo import demo_recording


def cut(seconds: float, to: Path) -> Path:
    """The first seconds of the shipped recording."""
    with wave.open(str(demo_recording()), "rb") as source, wave.open(str(to), "wb") as out:
        out.setparams(source.getparams())
        out.writeframes(source.readframes(round(seconds * source.getframerate())))
    return to


def one_run(sound: Path, out: Path, avatar: str) -> dict[str, float]:
    """Wall and processor seconds of one process, and its own summary's frames."""
    command = [sys.executable, "-P", "-m", "lipsync_fast", "render", str(sound), "-o", str(out)]
    command += ["--avatar", avatar, "--force", "--quiet", "--json"]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    frames = json.loads(done.stdout)["frames"]
    return {"frames": frames, "wall_s": wall, "cpu_s": cpu, "frames_per_s": frames / wall}


class Stages:
    """Processor time of functions, each by the clock of the thread that runs it."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done inside as ``name``."""
        begun = time.thread_time()
        try:
            yield
        finally:
            with self._lock:
                self.cpu_s[name] += time.thread_time() - begun

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Count every call of ``owner.attribute``."""
        inner: Callable[..., Any] = getattr(owner, attribute)

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return inner(*args, **kwargs)

        setattr(owner, attribute, counted)


class Counted:
    """A network's session whose runs are counted."""

    def __init__(self, session: Any, stages: Stages, name: str) -> None:
        self._session, self._stages, self._name = session, stages, name

    def run(self, *args: Any) -> Any:
        """As the session's."""
        with self._stages.part(self._name):
            return self._session.run(*args)


def profile(sound: Path, out: Path, avatar_name: str) -> dict[str, Any]:
    """Processor seconds of each stage of one render, and of the whole process meanwhile."""
    stages = Stages()
    whole, wall = time.process_time(), time.monotonic()
    with stages.part("imports"):
        import lipsync_fast
        from lipsync_fast import _native
        from lipsync_fast.avatars.package import AvatarPackage
        from lipsync_fast.output import open_writer
        from lipsync_fast.provenance import xmp_packet
    stages.wrap(_native, "compose", "compose")
    stages.wrap(_native, "region_output", "region to pixels")
    stages.wrap(_native, "region_input", "pixels to region")
    stages.wrap(AvatarPackage, "picture", "decode the avatar's JPEG")
    with stages.part("open the avatar, load the networks"):
        avatar = lipsync_fast.open(avatar_name, backend="cpu")
    loaded: Any = avatar.loaded
    for name in ("audio_encoder", "image", "decoder"):
        counted = Counted(getattr(loaded, name), stages, f"network: {name.replace('_', ' ')}")
        setattr(loaded, name, counted)
    if loaded.split is not None:
        loaded.split = Counted(loaded.split, stages, "network: decoder's native stages")
    frames = 0
    packet = xmp_packet(avatar.manifest.synthetic)
    with avatar, open_writer(str(out), sound, packet, True) as writer:
        stages.wrap(writer, "write", "colours, sound and x264, in the caller's thread")
        for frame in avatar.render(sound):
            writer.write(frame)
            frames += 1
        with stages.part("finish the file"):
            writer.commit()
    whole, wall = time.process_time() - whole, time.monotonic() - wall
    seen = dict(sorted(stages.cpu_s.items(), key=lambda item: -item[1]))
    seen["x264's threads, Python and the rest"] = whole - sum(seen.values())
    rounded = {name: round(seconds, 3) for name, seconds in seen.items()}
    return {"frames": frames, "wall_s": round(wall, 3), "cpu_s": round(whole, 3), "stages": rounded}


def main() -> None:
    """Measure and report."""
    args = program.options(__doc__, seconds=4.0, runs=5, avatar="demo", json=None)
    with tempfile.TemporaryDirectory() as folder:
        sound, out = cut(args.seconds, Path(folder) / "cut.wav"), Path(folder) / "out.mp4"
        load = os.getloadavg()[0]
        runs = [one_run(sound, out, args.avatar) for _ in range(args.runs)]
        profiled = profile(sound, out, args.avatar)
    middle = sorted(runs, key=lambda run: run["wall_s"])[len(runs) // 2]
    report = {
        "seconds": args.seconds,
        "avatar": args.avatar,
        **machine(),
        "load_before": round(load, 2),
        "median": {k: round(v, 3) for k, v in middle.items()},
        "median_cpu_s": round(statistics.median(run["cpu_s"] for run in runs), 3),
        "runs": [{k: round(v, 3) for k, v in run.items()} for run in runs],
        "profile": profiled,
    }
    print(json.dumps(report, indent=1))
    if args.json:
        program.write(args.json, report)


if __name__ == "__main__":
    main()
