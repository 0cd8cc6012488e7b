# SPDX-License-Identifier: Apache-2.0
"""What a student costs and gains: one is taught, tried by voices that it never heard, and timed.

    python bench/distill.py [--avatar demo] [--width 8] [--region 0] [--minutes 60] [--threads 0]
                            [--voices FOLDER] [--work FOLDER] [--out FILE]

Teaches AVATAR's student (``lipsync-fast avatar distill``; called again with the same --work it goes
on; with --minutes 0 this is left out), and writes down what its package says of it, how it got
there, and what it took. With --voices, the same marks for each recording (.wav) of a folder, over
frames that it did not learn from. Then networks of the reference's size against narrower and
smaller ones, all with random weights, since what they cost does not depend on them: in turns, as
engines measure themselves.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.reference import reference_networks, write_reference_avatar
from lipsync_fast.media.audio import MediaSource
from lipsync_fast.train.distill import held_out
from lipsync_fast.train.exam import Exam
from lipsync_fast.train.hearing import Sounds, track
from lipsync_fast.train.pace import paces
from lipsync_fast.train.sound import mel_of
from lipsync_fast.train.teacher import Seat, Teacher

SIZES = (32, 320), (16, 320), (16, 256), (8, 256)
"""Widths and regions that are timed; the first is the reference's."""
FRAMES = 6


def taught(args: Any, work: Path) -> dict[str, Any]:
    """Teach, and what came out."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-P", "-m", "lipsync_fast", "avatar", "distill", args.avatar]
    command += ["--width", str(args.width), "--minutes", str(args.minutes), "--json", "--force"]
    command += ["--out", str(work / "student"), "--work", str(work / "training")]
    for name in ("region", "threads"):
        if getattr(args, name):
            command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = json.loads(done.stdout)
    looks = [json.loads(s) for s in (work / "training" / "validation.jsonl").open()]
    return {
        "avatar": args.avatar,
        "width": found["width"],
        "region": found["region"],
        "steps": found["steps"],
        "minutes": round(found["seconds"] / 60, 1),
        "cpu_minutes_of_this_run": round(spent / 60, 1),
        "held_frames": found["held_frames"],
        "student": found["student"],
        "looks": [{k: round(v, 3) for k, v in look.items()} for look in looks],
    }


def heard(args: Any, work: Path) -> list[dict[str, Any]]:
    """The student's marks by each voice of a folder."""
    files = sorted(Path(args.voices).glob("*.wav")) if args.voices else []
    rows = []
    teacher_path = AvatarLibrary().find(args.avatar)
    with (
        AvatarPackage.open(teacher_path) as package,
        AvatarPackage.open(work / "student") as made,
        Teacher(package, args.threads or 1) as teacher,
        Teacher(made, args.threads or 1) as student,
    ):
        seat, window = Seat(teacher, made.manifest.region), package.manifest.audio
        held = held_out(package.manifest.frame_count)[1][:FRAMES]
        for file in files:
            with MediaSource(file) as source:
                mel = mel_of(np.concatenate(list(source)), window)
            sounds = Sounds([track(teacher.features, mel)], window)
            exam = Exam(teacher, seat, held, sounds, 0)
            marks = exam.marks(student.made(exam.frames, exam.blocks))
            alike = marks.alike
            rows.append(
                {"voice": file.stem, "difference": round(marks.mouth, 2), "r": round(alike.r, 3)}
                | {"swing": round(alike.swing, 2), "sharpness": round(alike.sharpness, 2)}
            )
    return rows


def timed(threads: int) -> list[dict[str, Any]]:
    """Frames a second of networks of several sizes, in turns."""
    with tempfile.TemporaryDirectory(prefix="lipsync-bench-") as folder:
        paths = [
            write_reference_avatar(Path(folder) / f"{w}-{r}", reference_networks(w, r), FRAMES)
            for w, r in SIZES
        ]
        found = paces(paths, threads)
    return [
        {"width": w, "region": r, "frames_per_s": round(fps, 1), "times": round(fps / found[0], 2)}
        for (w, r), fps in zip(SIZES, found, strict=True)
    ]


def main() -> int:
    """Write the result."""
    args = program.options(
        __doc__, avatar="demo", width=8, region=0, minutes=60.0, threads=0, voices="", work="",
        out=Path("bench/results/distill.json"),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="lipsync-distill-") as temporary:
        work = Path(args.work or temporary)
        found: dict[str, Any] = {}
        if args.minutes:
            found = {"taught": taught(args, work), "other_voices": heard(args, work)}
        program.keep(args.out, **found, random_weights=timed(args.threads or 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
