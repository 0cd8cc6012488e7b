# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast avatar distill``: a faster avatar of a person, taught by the one there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lipsync_fast.cli.commands import choice, complete_avatar
from lipsync_fast.cli.train import (
    PrecisionOption,
    ResumeOption,
    SeedOption,
    ThreadsOption,
    need_training,
    write_json,
)
from lipsync_fast.console import guarded, one_line, say, warn

if TYPE_CHECKING:
    from lipsync_fast.avatars.manifest import Student


@guarded
def distill(
    avatar: Annotated[
        str, typer.Argument(help="The teacher's name or path.", autocompletion=complete_avatar)
    ],
    width: Annotated[
        int | None,
        typer.Option(help="The student's width, less than the teacher's (default: half of it)."),
    ] = None,
    region: Annotated[
        int | None,
        typer.Option(
            help="The side of the square that it makes (default: 256, or the teacher's if less)."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="How long to teach now (default: 60); the same command goes on later."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps in all, in place of --minutes.")
    ] = None,
    speech: Annotated[
        list[Path] | None,
        typer.Option(
            help="A recording of any voice to teach by, beside the shipped one (may be repeated)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Where the student goes: FOLDER or FILE.lsa (default: NAME-WIDTH in your data"
            " folder).",
        ),
    ] = None,
    avatars: Annotated[
        list[Path] | None,
        typer.Option("--avatars", help="A folder to look for avatars in first (may be repeated)."),
    ] = None,
    device: Annotated[str, choice(among=("auto", "cpu", "cuda"), help="What learns.")] = "auto",
    precision: PrecisionOption = "auto",
    batch: Annotated[
        int | None, typer.Option(min=3, max=1024, help="Pictures in a step (default: 12).")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="The learning rate (default: 0.004).")] = None,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
    validate_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between looks at held-out frames (default: 200)."),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="The folder for checkpoints and logs (default: hidden, beside --out)."),
    ] = None,
    resume: ResumeOption = True,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the student if it is there already.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Teach a narrower network to do what an avatar does, and pack it as an avatar of its own.

    No film is needed. It may be interrupted at any time: the same command goes on where it was.
    The student is another avatar: nothing uses it unless it is asked for by its name.
    """
    need_training()
    from lipsync_fast.avatars.library import AvatarLibrary, folder_for_new
    from lipsync_fast.avatars.package import AvatarPackage
    from lipsync_fast.train import distill as taught

    path = AvatarLibrary(avatars or ()).find(avatar)
    if out is None:
        with AvatarPackage.open(path) as package:
            m = package.manifest
        out = folder_for_new("--out") / f"{m.name}-{width or taught.usual_width(m)}"
    result = taught.distill(
        taught.DistillRequest(
            avatar=path,
            out=out,
            width=width,
            region=region,
            minutes=minutes,
            steps=steps,
            speech=speech or (),
            work=work,
            device=device,
            precision=precision,
            batch=batch,
            rate=rate,
            seed=seed,
            threads=threads,
            validate_every=validate_every,
            restart=not resume,
            force=force,
            quiet=quiet,
        )
    )
    if not quiet:
        where = one_line(result.path)
        say(f"taught: {where} (width {result.width}, region {result.region})")
        say(f"against {result.student.teacher}: {student_words(result.student)}")
        if result.teacher_signed:
            warn("the teacher's signature does not hold for it: lipsync-fast avatar sign")
        say(f"try: lipsync-fast render SPEECH.wav -o out.mp4 --avatar {where}")
    if json:
        write_json(result)


def student_words(s: Student) -> str:
    """What a student costs and gains, in a line."""
    return (
        f"mouth {s.difference:.1f} grey levels off, r {s.r:.3f}, swing {100 * s.swing:.0f}%,"
        f" sharpness {100 * s.sharpness:.0f}%; {s.frames_per_s:.0f} frames/s in place of"
        f" {s.teacher_frames_per_s:.0f} ({s.times:.1f}x)"
    )
