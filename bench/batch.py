# SPDX-License-Identifier: Apache-2.0
"""Many short recordings: by one process, by several, by two Ray nodes, and with one node killed.

    unshare -rn sh -c 'ip link set lo up; exec python bench/batch.py --out bench/results/batch.json'
    python bench/batch.py [--recordings 200] [--seconds 1.0] [--avatar demo|tiny]

Each run is ``lipsync-fast batch``, into a folder of its own. In the last one, the second node's
processes are killed when a third of the videos are there. Behind each run it is asked whether all
videos are there and whole, and whether a name was ever given twice: whether another file lay under
it later. Ray binds this machine's own address, so its parts want a network without others.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.speech import shipped_recording
from lipsync_fast.timing import FPS, SAMPLE_RATE

LOOK_S = 0.02
STEP = 320
"""Samples from the start of one recording to the next one's."""


def write_recordings(folder: Path, count: int, seconds: float) -> Path:
    """Pieces of the shipped recording, no two alike; gives their list."""
    pcm, length = shipped_recording(), round(seconds * SAMPLE_RATE)
    lines = []
    for number in range(count):
        start = number * STEP % (len(pcm) - length)
        with wave.open(str(folder / f"{number:04}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(pcm[start : start + length].tobytes())
        lines.append(json.dumps({"audio": f"{number:04}.wav"}) + "\n")
    (folder / "list.jsonl").write_text("".join(lines))
    return folder / "list.jsonl"


def run(
    recordings: Path, out: Path, avatar: Path, more: list[str], look: Callable[[int], None]
) -> dict[str, Any]:
    """One batch, watched.

    Args:
        look: told again and again how many videos are there.
    """
    command = [
        sys.executable, "-m", "lipsync_fast", "batch", str(recordings), "--out", str(out),
        "--avatar", str(avatar), "--backend", "cpu", "--quiet", "--json", *more,
    ]  # fmt: skip
    inodes: dict[str, int] = {}
    twice: set[str] = set()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        see(out, inodes, twice)
        look(len(inodes))
        time.sleep(LOOK_S)
    see(out, inodes, twice)
    text = process.communicate()[0]
    if not text:
        raise SystemExit(f"the batch ended with status {process.returncode}")
    said = json.loads(text)
    wanted = [json.loads(line)["audio"] for line in recordings.read_text().splitlines()]
    ends = [json.loads(line) for line in (out / "batch.jsonl").read_text().splitlines()]
    with wave.open(str(recordings.parent / wanted[0])) as file:
        frames = -(-file.getnframes() * FPS // SAMPLE_RATE)
    return {
        "options": more,
        "status": process.returncode,
        "wall_s": round(said["wall_s"], 2),
        "recordings_s": round(len(wanted) / said["wall_s"], 3),
        "realtime_factor": round(said["realtime_factor"], 3),
        "made": said["made"],
        "kept": said["kept"],
        "failed": said["failed"],
        "tries": dict(sorted(Counter(str(end["tries"]) for end in ends).items())),
        "whole": sum(whole(out / f"{Path(name).stem}.mp4", frames) for name in wanted),
        "twice": sorted(twice),
        "left": sorted(p.name for p in out.iterdir() if p.suffix != ".mp4" or p.name[0] == "."),
    }


def see(out: Path, inodes: dict[str, int], twice: set[str]) -> None:
    """Note which file lies under which name, and where that is another one than before."""
    with contextlib.suppress(OSError), os.scandir(out) as entries:
        for entry in entries:
            if entry.name.endswith(".mp4") and inodes.setdefault(entry.name, entry.inode()) != (
                entry.inode()
            ):
                twice.add(entry.name)


def whole(video: Path, frames: int) -> bool:
    """Whether a video is there and has so many pictures."""
    try:
        with av.open(str(video)) as file:
            return sum(1 for _ in file.decode(video=0)) == frames
    except (OSError, av.FFmpegError):
        return False


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[str, Callable[[], None], float]]:
    """A Ray cluster of two nodes with a processor each: its address, what kills the second node,
    and how long it took to start."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Its workers have a low priority else, and the processes that they are held against have not.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (so Ray spells it)
    from ray.cluster_utils import Cluster

    begun = time.monotonic()
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        second = cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield (
            cluster.address,
            lambda: cluster.remove_node(second, allow_graceful=False),
            time.monotonic() - begun,
        )
    finally:
        cluster.shutdown()


def main() -> int:
    """Measure, write, say."""
    args = program.options(
        __doc__,
        recordings=200,
        seconds=1.0,
        avatar="demo",
        only="one,processes,ray,killed",
        out=None,
    )
    runs: dict[str, dict[str, Any]] = {}
    about = {"recordings": args.recordings, "seconds": args.seconds, "avatar": args.avatar}
    good = True
    with tempfile.TemporaryDirectory(prefix="lipsync-bench-batch-") as name:
        folder = Path(name)
        avatar = found(args.avatar, folder)
        recordings = write_recordings(folder, args.recordings, args.seconds)
        for part in args.only.split(","):
            out, load = folder / part, round(os.getloadavg()[0], 1)
            if part in ("one", "processes"):
                jobs = "1" if part == "one" else "2"
                more = ["--jobs", jobs, "--threads", "1"]
                runs[part] = run(recordings, out, avatar, more, lambda there: None)
            else:
                runs[part] = on_ray(recordings, out, avatar, part == "killed", args.recordings)
            runs[part]["load_before"] = load
            print(part, json.dumps(runs[part]), flush=True)
            good = all(is_good(each, args.recordings) for each in runs.values())
            speed = {part: each["recordings_s"] for part, each in runs.items()}
            if "one" in speed:
                speed = {part: round(each / speed["one"], 2) for part, each in speed.items()}
                about["against_one_process"] = speed
            program.keep(args.out, **about, runs=runs, good=good)
    print(json.dumps(about | {"good": good}))
    return 0 if good else 1


def found(avatar: str, folder: Path) -> Path:
    """An avatar's package; "tiny" is the one that the tests make, which is nothing but quick."""
    if avatar != "tiny":
        return AvatarLibrary().find(avatar).absolute()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from tiny import write_tiny_avatar

    return write_tiny_avatar(folder / "tiny")


def is_good(run: dict[str, Any], recordings: int) -> bool:
    """Whether all videos are there and whole, none was made twice, and nothing else is left."""
    return (
        run["status"] == 0
        and run["whole"] == run["made"] + run["kept"] == recordings
        and not run["twice"]
        and run["left"] == ["batch.jsonl"]
    )


def on_ray(recordings: Path, out: Path, avatar: Path, kill: bool, count: int) -> dict[str, Any]:
    """A batch on two nodes; the second one may be killed when a third is there."""
    with two_nodes() as (address, kill_second, start_s):
        killed_at: list[int] = []

        def look(there: int) -> None:
            if kill and not killed_at and there >= count // 3:
                killed_at.append(there)
                kill_second()

        found = run(recordings, out, avatar, ["--ray", address, "--threads", "1"], look)
    more = {"killed_at": killed_at[0]} if killed_at else {}
    return found | {"cluster_start_s": round(start_s, 1)} | more


if __name__ == "__main__":
    sys.exit(main())
