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

from lipsync_fast.console import guarded, one_line, say
from lipsync_fast.errors import LipsyncError
from lipsync_fast.extras import how_to_get

_NEEDED = ("torch", "onnx")


@guarded
def train(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Of avatar prepare; with sound.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The avatar: a folder or FILE.lsa; your data folder."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Over all frames; 100.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="In place of epochs.")] = None,
    batch: Annotated[int, typer.Option(min=2, max=1024, help="Frames of a step.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (bf16 or fp16 on a GPU, fp32 on the CPU), fp32, fp16, bf16.")
    ] = "auto",
    sync_loss: Annotated[
        float, typer.Option(min=0.0, help="Weight of the sync loss; 0: none.")
    ] = 0.0,
    perceptual: Annotated[
        str, typer.Option(help="auto (if torch's cache has VGG19), off, or VGG19's weights.")
    ] = "auto",
    audio_encoder: Annotated[
        str | None,
        typer.Option(help="Weights (.pth, .onnx), or an avatar whose encoder to take."),
    ] = None,
    width: Annotated[int, typer.Option(help="32 is the reference; 16 or 8 are faster.")] = 32,
    region: Annotated[int, typer.Option(help="Pixels made; 320 is the reference.")] = 320,
    after: Annotated[
        int, typer.Option(min=2, max=8, help="Look-ahead: 8 is 452.5 ms, 2 is 72.5 ms (live).")
    ] = 8,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    weights: Annotated[
        Path | None, typer.Option(help="A network to begin with, of this width and region.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the processor.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read frames.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    validate_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between looks at held-out frames; a 20th.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Checkpoints and logs; DIR/training.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on from a checkpoint, or forget it.")
    ] = True,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Train a tiny one on the demo avatar, as a test.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the avatar at --out.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Close with one JSON object.")] = False,
) -> None:
    """Train a prepared video's network and pack it as an avatar; stops and goes on at any time."""
    _need()
    if smoke:
        _smoke(folder, out, steps, seed, threads, resume, force, quiet, json)
        return
    if folder is None:
        raise typer.BadParameter("DIR is needed: a folder made by avatar prepare")
    if epochs is not None and steps is not None:
        raise typer.BadParameter("--epochs and --steps exclude each other")
    if audio_encoder is None:
        raise typer.BadParameter(
            "--audio-encoder is needed: the weights published with SyncTalk_2D"
            " (audio_visual_encoder.pth), a graph (.onnx), or an avatar's name (demo has one that"
            " was trained on few voices)"
        )
    from lipsync_fast.avatars.library import folder_for_new
    from lipsync_fast.train import run

    result = run.train(
        run.TrainRequest(
            folder=folder,
            out=out or folder_for_new("--out") / folder.resolve().name,
            audio_encoder=audio_encoder,
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
        say(
            f"trained: {one_line(result.path)} (best at step {result.best.step}: held-out frames"
            f" differ by {result.best.loss:.2f} grey levels, {result.best.mouth:.2f} at the mouth)"
        )
        say(f"try: lipsync-fast render SPEECH.wav -o out.mp4 --avatar {one_line(result.path)}")
    if json:
        _write_json(result)


def _need() -> None:
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
        _write_json(report)


def _write_json(value: object) -> None:
    from lipsync_fast.names import json_bytes

    sys.stdout.write(json_bytes(value).decode() + "\n")
    sys.stdout.flush()
