# SPDX-License-Identifier: Apache-2.0
"""What each part of a training that follows the sound is worth: the same run without it.

    python bench/train_tricks.py --folder FOLDER [--steps 200] [--only NAME,NAME] [--out FILE]

FOLDER is one that ``avatar prepare`` made, of a film of somebody who speaks. Each run has as many
steps, the same seed and a process of its own, one after the other; what is written down is what its
last look at held-out frames found, and the processor time that it took (the first one's includes
tuning what hears, which the others take over). A run that is in FILE already is not made again.
Only numbers leave the folder.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lipsync_fast.benchmark import program
from lipsync_fast.train.state import HEARING

FOLLOW = "lipsync_fast.train.follow"
CHANGES: dict[str, tuple[dict[str, float], list[str]]] = {
    "all of it": ({}, []),
    "without more weight at the lips": ({"LIPS_WEIGHT": 0.0, "FACE_WEIGHT": 2.0}, []),
    "without the error of detail": ({"TEXTURE_WEIGHT": 0.0}, []),
    "detail weighs 0.3": ({"TEXTURE_WEIGHT": 0.3}, []),
    "detail weighs 1": ({"TEXTURE_WEIGHT": 1.0}, []),
    "without the window's edge": ({"EDGE_WEIGHT": 0.0}, []),
    "the edge weighs a quarter": ({"EDGE_WEIGHT": 2.0}, []),
    "a rate that stays": ({"SETTLES": 1e12}, []),
    "without averaged weights": ({"AVERAGE": 0.0}, []),
    "one picture a step": ({"FRAMES": 1}, []),
    "hearing that is not tuned": ({}, ["--hearing-steps", "1"]),
}
"""Constants of ``train.follow``, and options of the command."""
RUN = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
for name, value in json.loads(sys.argv[2]).items():
    setattr(module, name, type(getattr(module, name))(value))
from lipsync_fast.cli.main import run
sys.argv = ["lipsync-fast", *sys.argv[3:]]
run()
"""


def one(folder: Path, name: str, steps: int, heard: Path) -> dict[str, Any]:
    """Train so, and say what came out; ``heard`` is the tuned hearing, of the first run for all."""
    constants, options = CHANGES[name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as work:
        kept = Path(work, "work", heard.name)
        if heard.exists() and not options:
            kept.parent.mkdir()
            shutil.copy(heard, kept)
        command = [sys.executable, "-P", "-c", RUN, FOLLOW, json.dumps(constants)]
        command += ["avatar", "train", str(folder), "--recipe", "follow", "--steps", str(steps)]
        command += ["--validate-every", str(steps), "--work", f"{work}/work", "--quiet", "--json"]
        command += ["--out", f"{work}/avatar.lsa", *options]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        if not options:
            shutil.copy(kept, heard)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    best = json.loads(done.stdout)["best"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"name": name, "steps": steps, "cpu_s": round(cpu, 1), "pixels": best["loss"]} | {
        key: round(value, 3) for key, value in best["follows"].items()
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| | CPU s | r | shut in silence | sharpness | seam | grey levels |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['name']} | {r['cpu_s']:.0f} | {r['r']:.2f} | {r['shut']:.0%} | {r['sharpness']:.2f}"
        f" | {r['seam']:.2f} | {r['pixels']:.1f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> None:
    args = program.options(__doc__, folder=Path(), steps=200, only="", out=None)
    before: dict[str, Any] = {}
    if args.out is not None and args.out.exists():
        before = json.loads(args.out.read_text())
    rows: list[dict[str, Any]] = before.get("runs", [])
    there = {(row["name"], row["steps"]) for row in rows}
    with tempfile.TemporaryDirectory() as shared:
        for name in CHANGES:
            if (args.only and name not in args.only.split(",")) or (name, args.steps) in there:
                continue
            rows.append(one(args.folder, name, args.steps, Path(shared, HEARING)))
            print(rows[-1], flush=True)
            if args.out is not None:  # the command line names the folder: that stays here
                program.write(args.out, before | program.about_this_machine() | {"runs": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
