# SPDX-License-Identifier: Apache-2.0
"""A whole training in small, on what is shipped: proof that this machine can train.

The demo avatar's frames, speaking the demo recording by its own networks, become a prepared folder;
a network of a sixteenth of the reference's size learns from it, hearing through the demo avatar's
audio encoder; the package is rendered with sound and with silence.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

import lipsync_fast
from lipsync_fast.errors import TrainingError
from lipsync_fast.timing import FRAME_SAMPLES, SAMPLE_RATE
from lipsync_fast.train.losses import mouth
from lipsync_fast.train.run import TrainRequest, TrainResult, train
from lipsync_fast.train.staged import Said, Staged, write_prepared

FRAMES = 150
STEPS = 400
WIDTH, REGION, BATCH, LEARNING_RATE = 8, 224, 2, 2e-3
FALL = 0.5
"""The pixel loss at the end, as a part of the one at the beginning, at most."""
REACTS = 0.5
"""Grey levels by which mouths with sound and with silence differ at least, on average."""
RENDERED = 50


class SmokeReport(msgspec.Struct, frozen=True):
    """What came out.

    Attributes:
        first_loss: grey levels that a made pixel differed by, over the first twentieth of steps.
        last_loss: the same over the last one.
        reaction: grey levels by which the mouth with sound differs from the mouth with silence.
        elsewhere: the same outside the crop; nothing may change there.
    """

    path: str
    steps: int
    seconds: float
    first_loss: float
    last_loss: float
    reaction: float
    elsewhere: float


@dataclass(frozen=True, slots=True)
class SmokeRequest:
    """Where to work, and how long to train."""

    folder: Path
    out: Path
    steps: int = STEPS
    seed: int = 0
    threads: int | None = None
    restart: bool = False
    force: bool = False
    quiet: bool = False


def smoke(request: SmokeRequest) -> SmokeReport:
    """Prepare, train, pack, render, and check.

    Raises:
        TrainingError: the loss did not fall, or the mouth does not react to the sound.
    """
    prepared = request.folder
    if not (prepared / "prepared.json").exists():
        write_prepared(
            prepared,
            _speaking(),
            _recording()[: FRAMES * FRAME_SAMPLES],
            Said(
                name="smoke",
                source="the demo avatar, speaking",
                licence="Apache-2.0",
                provenance="frames of the demo avatar, made by its own networks",
                consent="Not needed: nobody is shown.",
                synthetic=True,
            ),
        )
    result = train(
        TrainRequest(
            folder=prepared,
            out=request.out,
            audio_encoder="demo",
            steps=request.steps,
            batch=BATCH,
            device="cpu",
            perceptual="off",
            width=WIDTH,
            region=REGION,
            rate=LEARNING_RATE,
            seed=request.seed,
            threads=request.threads,
            save_every=50,
            validate_every=max(1, request.steps // 4),
            restart=request.restart,
            force=request.force,
            quiet=request.quiet,
        )
    )
    return _judged(result)


def _speaking() -> Iterator[Staged]:
    with lipsync_fast.open("demo", backend="cpu") as avatar:
        package = avatar.package
        for frame in avatar.render(_recording()[: FRAMES * FRAME_SAMPLES], sample_rate=SAMPLE_RATE):
            yield Staged(frame.image, package.rect(frame.avatar_frame))


def _recording() -> NDArray[np.int16]:
    with (
        resources.as_file(resources.files("lipsync_fast") / "data/demo/speech.wav") as path,
        wave.open(str(path), "rb") as file,
    ):
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def _judged(result: TrainResult) -> SmokeReport:
    """Render the package with sound and with silence, and look."""
    sound = _recording()[: RENDERED * FRAME_SAMPLES]
    differences, elsewhere = [], []
    with lipsync_fast.open(result.path, backend="cpu") as avatar:
        m, package = avatar.manifest, avatar.package
        spoken, silent = (
            avatar.render(pcm, sample_rate=SAMPLE_RATE) for pcm in (sound, np.zeros_like(sound))
        )
        for frame, quiet in zip(spoken, silent, strict=True):
            if frame.image.shape != (m.frame_height, m.frame_width, 3):
                raise TrainingError(f"a frame of {frame.image.shape} was rendered")
            off = np.abs(frame.image.astype(np.int16) - quiet.image)
            rect = package.rect(frame.avatar_frame)
            top, bottom, left, right = (v * rect.width // REGION for v in mouth(REGION))
            face = off[rect.slices]
            differences.append(face[top:bottom, left:right].mean())
            face[:] = 0
            elsewhere.append(off.max())
    report = SmokeReport(
        path=result.path,
        steps=result.steps,
        seconds=result.seconds,
        first_loss=round(255 * result.first_loss, 3),
        last_loss=round(255 * result.last_loss, 3),
        reaction=round(float(np.mean(differences)), 3),
        elsewhere=float(max(elsewhere)),
    )
    if report.last_loss > FALL * report.first_loss:
        raise TrainingError(
            f"the loss fell only from {report.first_loss} to {report.last_loss} grey levels"
        )
    if report.reaction < REACTS or report.elsewhere:
        raise TrainingError(
            f"sound changes the mouth by {report.reaction} grey levels (expected {REACTS} and"
            f" more) and what is outside the face by {report.elsewhere} (expected none)"
        )
    return report
