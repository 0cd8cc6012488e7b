# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast avatar train``: a network for a prepared video (extra ``train``).

The command is long because it declares its options and hands each of them on by name.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from lipsync_fast.cli.commands import choice
from lipsync_fast.console import guarded, one_line, say
from lipsync_fast.errors import LipsyncError
from lipsync_fast.extras import how_to_get

_NEEDED = ("torch", "onnx")

PrecisionOption = Annotated[
    str,
    choice(
        among=("auto", "fp32", "fp16", "bf16"),
        help="auto is bf16 or fp16 on a GPU, fp32 on the CPU.",
    ),
]
SeedOption = Annotated[
    int | None, typer.Option(min=0, help="The seed of everything random (default: 0).")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads of the processor.")]
ResumeOption = Annotated[
    bool,
    typer.Option("--resume/--restart", help="Go on from the last checkpoint, or begin anew."),
]


@guarded
def train(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR", help="A folder made by avatar prepare, of a video with sound."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Where the avatar goes: FOLDER or FILE.lsa (default: your data folder).",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="How long to train now (default: 60); the same command goes on later."
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        choice(
            among=("reference", "follow"),
            help="follow learns what is heard first (default with a face mesh, the detector's);"
            " reference is SyncTalk_2D's way (default with other landmarks).",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="How often all frames are gone through (default: 100)."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps in all, in place of --minutes or --epochs.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=2, max=1024, help="Frames in a step (default: 8; follow: 12)."),
    ] = None,
    device: Annotated[str, choice(among=("auto", "cpu", "cuda"), help="What trains.")] = "auto",
    precision: PrecisionOption = "auto",
    sync_loss: Annotated[
        float, typer.Option(min=0.0, help="The weight of the sync loss; 0: none.")
    ] = 0.0,
    perceptual: Annotated[
        str,
        typer.Option(
            help="auto (used if torch's cache has VGG19), off, or a file of VGG19's weights."
        ),
    ] = "auto",
    audio_encoder: Annotated[
        str | None,
        typer.Option(
            help="The audio encoder: weights (.pth, .onnx), or an avatar that has it (default: the"
            " shipped avatar's; with follow it is tuned to the voice)."
        ),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="The network's width (default: 32; follow: 16; 8 is faster)."),
    ] = None,
    region: Annotated[
        int | None,
        typer.Option(help="The side of the square that is made (default: 320; follow: 256)."),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=8,
            help="The look-ahead: 8 is 452.5 ms, 2 is 212.5 ms (default: 8; follow: 2).",
        ),
    ] = None,
    gain: Annotated[
        str | None,
        choice(
            among=("auto", "none"),
            help="auto: sound of any level is made equally loud before it is heard"
            " (default: none; follow: auto).",
        ),
    ] = None,
    hearing_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps to tune the audio encoder to this voice (default: 160)."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="The learning rate (default: 0.001; follow: 0.004).")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="A network to begin with, a checkpoint of the same width and region (reference)."
        ),
    ] = None,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read frames.")] = None,
    save_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between checkpoints (default: 200; follow: 50)."),
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps between looks at held-out frames (default: a 20th of all; follow: 100).",
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="The folder for checkpoints and logs (default: DIR/training)."),
    ] = None,
    resume: ResumeOption = True,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Train a tiny network on the demo avatar, as a test.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the avatar if it is there already.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Train a network on a prepared video, and pack it as an avatar.

    It may be interrupted at any time: the same command goes on where it was.
    """
    need_training()
    if smoke:
        _smoke(folder, out, steps, seed or 0, threads, resume, force, quiet, json)
        return
    if folder is None:
        raise typer.BadParameter("DIR is missing: a folder made by lipsync-fast avatar prepare")
    if epochs is not None and steps is not None:
        raise typer.BadParameter("--epochs and --steps cannot be given together")
    from lipsync_fast.avatars.library import folder_for_new
    from lipsync_fast.train import run

    result = run.train(
        run.TrainRequest(
            folder=folder,
            out=out or folder_for_new("--out") / folder.resolve().name,
            audio_encoder=audio_encoder or "demo",
            recipe=recipe,
            minutes=minutes,
            work=work,
            epochs=epochs,
            steps=steps,
            batch=batch,
            device=device,
            precision=precision,
            sync_loss=sync_loss,
            perceptual=perceptual,
            width=width,
            region=region,
            after=after,
            gain=gain,
            hearing=hearing_steps,
            rate=rate,
            weights=weights,
            seed=seed,
            threads=threads,
            workers=workers,
            save_every=save_every,
            validate_every=validate_every,
            restart=not resume,
            force=force,
            quiet=quiet,
        )
    )
    if not quiet:
        best = result.best
        say(f"trained: {one_line(result.path)} (best at step {best.step}: {best.sentence()})")
        say(f"try: lipsync-fast render SPEECH.wav -o out.mp4 --avatar {one_line(result.path)}")
    if json:
        write_json(result)


def need_training() -> None:
    """Say which extra is missing, before anything is imported.

    Raises:
        LipsyncError: torch or onnx is absent.
    """
    absent = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise LipsyncError(f"training needs {' and '.join(absent)}: {how_to_get('train')}")


def _smoke(
    folder: Path | None,
    out: Path | None,
    steps: int | None,
    seed: int,
    threads: int | None,
    resume: bool,
    force: bool,
    quiet: bool,
    json: bool,
) -> None:
    from lipsync_fast.train.smoke import STEPS, SmokeRequest, smoke

    with tempfile.TemporaryDirectory(prefix="lipsync-smoke-") as temporary:
        prepared = folder or Path(temporary) / "prepared"
        report = smoke(
            SmokeRequest(
                folder=prepared,
                out=out or prepared.parent / "smoke.lsa",
                steps=steps or STEPS,
                seed=seed,
                threads=threads,
                restart=not resume,
                force=force,
                quiet=quiet,
            )
        )
    if not quiet:
        say(
            f"smoke test passed: the loss fell from {report.first_loss:.2f} to"
            f" {report.last_loss:.2f} grey levels in {report.steps} steps and"
            f" {report.seconds:.0f} s; sound moves the mouth by {report.reaction:.2f}"
        )
    if json:
        write_json(report)


def write_json(value: object) -> None:
    from lipsync_fast.names import json_bytes
    from lipsync_fast.rounding import rounded

    sys.stdout.write(json_bytes(rounded(value)).decode() + "\n")
    sys.stdout.flush()
