# SPDX-License-Identifier: Apache-2.0
"""From a prepared folder to an avatar package: what ``avatar train`` does, without its options."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from lipsync_fast.errors import CheckpointError, TrainingError
from lipsync_fast.machine import processors
from lipsync_fast.prepare.folder import PreparedAvatar
from lipsync_fast.train.asked import check_former, check_out, device_of, precision_of
from lipsync_fast.train.data import split
from lipsync_fast.train.finish import pack, pack_following, provenance_of
from lipsync_fast.train.lessons import Following, following, reference_lesson
from lipsync_fast.train.losses import Perceptual, file_hash, find_vgg, load_perceptual
from lipsync_fast.train.mouths import MESHES
from lipsync_fast.train.options import (
    EPOCHS,
    HEARING_STEPS,
    MOST_STEPS,
    Options,
    Recipe,
    checked,
)
from lipsync_fast.train.progress import StepProgress
from lipsync_fast.train.sound import Encoder, find_encoder
from lipsync_fast.train.state import SHEET, Best, State, Work
from lipsync_fast.train.trainer import Lesson, Schedule, Trainer

FOLDER = "training"
VALIDATIONS = 20
"""Looks at held-out frames in a training of the reference's way, unless told otherwise."""
LOOK_EVERY = 100
"""Steps between two looks of a training that follows the sound."""
MINUTES = 60.0
"""Of a run that follows the sound, unless told otherwise."""
SAVE_EVERY = {"reference": 200, "follow": 50}


class Usual(NamedTuple):
    """What a way of learning has, unless told otherwise."""

    batch: int
    width: int
    region: int
    after: int
    gain: str = "none"
    hearing: int = HEARING_STEPS
    rate: float = 1e-3
    seed: int = 0


DEFAULTS = {
    "reference": Usual(batch=8, width=32, region=320, after=8, gain="none", rate=1e-3),
    "follow": Usual(batch=12, width=16, region=256, after=2, gain="auto", rate=4e-3),
}
DATA_CHANGED = "the prepared folder or the audio encoder has changed"
_DATA = ("frames.bin", "frames.npy", "rects.npy", "landmarks.npy", "sound.wav")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What the command line asked for; None: as the training that goes on has it, else chosen here.

    Attributes:
        folder: the prepared folder.
        out: the package's path.
        audio_encoder: see ``sound.find_encoder``.
        recipe: reference, or follow.
        minutes: of this run.
        work: the training's folder; ``training`` in the prepared one by default.
        perceptual: auto, off, or the file of VGG19's weights.
        weights: a U-Net's checkpoint to begin with (reference).
        restart: forget a former training.
        force: replace a package at ``out``.
    """

    folder: Path
    out: Path
    audio_encoder: str = "demo"
    recipe: str | None = None
    minutes: float | None = None
    work: Path | None = None
    epochs: int | None = None
    steps: int | None = None
    batch: int | None = None
    device: str = "auto"
    precision: str = "auto"
    sync_loss: float = 0.0
    perceptual: str = "auto"
    width: int | None = None
    region: int | None = None
    after: int | None = None
    gain: str | None = None
    hearing: int | None = None
    rate: float | None = None
    weights: str | Path | None = None
    seed: int | None = None
    threads: int | None = None
    workers: int | None = None
    save_every: int | None = None
    validate_every: int | None = None
    restart: bool = False
    force: bool = False
    quiet: bool = False


class TrainResult(msgspec.Struct, frozen=True):
    """How a training ended.

    Attributes:
        path: the package.
        steps: done in all.
        first_loss: mean absolute difference of the pixels over the first twentieth of all steps.
        last_loss: the same over the last one.
    """

    path: str
    work: str
    steps: int
    seconds: float
    best: Best
    first_loss: float
    last_loss: float


def train(request: TrainRequest) -> TrainResult:
    """Train, resuming where a former run stopped, and pack the result.

    Raises:
        LipsyncError: the folder, the sound, a file of weights or an option cannot be used; the
            training came to grief; an output cannot be written.
        KeyboardInterrupt, SystemExit: a signal came; the same call goes on from there.
    """
    check_out(request.out, force=request.force)
    work = Work(request.work or request.folder / FOLDER)
    with PreparedAvatar.open(request.folder) as prepared, work.locked():
        if request.restart:
            work.clear()
        return _train(request, prepared, work, StepProgress(quiet=request.quiet))


def _train(
    request: TrainRequest, prepared: PreparedAvatar, work: Work, progress: StepProgress
) -> TrainResult:
    learnt, held = split(len(prepared))
    former = work.load()
    recipe = _recipe(request, former, prepared)
    options = _options(request, recipe, len(learnt), former, progress)
    encoder = find_encoder(request.audio_encoder)
    key = _key(prepared, encoder)
    check_former(former, options, work, DATA_CHANGED if former and former.data != key else "")
    perceptual = _perceptual(request, options)
    weights = None if former else request.weights
    follows: Following | None = None
    lesson: Lesson[Any]
    if recipe == "follow":
        hearing_key = f"{key} told {options.region} {options.seed} {options.hearing}"
        if options.gain != "none":
            hearing_key += f" gain {options.gain}"
        follows = following(prepared, encoder, options, perceptual, work, hearing_key, progress)
        lesson = follows.lesson
    else:
        start = None if weights is None else Path(weights)
        lesson = reference_lesson(prepared, encoder, options, start, perceptual)
    schedule = Schedule(
        key,
        _workers(request.workers, options),
        request.save_every or SAVE_EVERY[recipe],
        _minutes(request, recipe),
    )
    trainer = Trainer(options, lesson, schedule, work, former)
    if former is not None:
        progress.say(f"going on after step {trainer.step}{_of(options)}")
    trainer.run(progress)
    best = trainer.best
    if best is None:
        raise CheckpointError(f"{work.folder}: no weights were kept; begin anew with --restart")
    provenance = provenance_of(prepared, options, encoder, best, trainer, len(learnt), len(held))
    weights_kept = work.best(best)
    if follows is None:
        path = pack(
            prepared, request.out, weights_kept, options, encoder.onnx, provenance,
            overwrite=request.force,
        )  # fmt: skip
    else:
        path = pack_following(
            prepared, request.out, weights_kept, options, follows, provenance, progress,
            overwrite=request.force,
        )  # fmt: skip
    progress.say(f"validation frames: {work.folder / SHEET}")
    first, last = work.losses()
    seconds = round(trainer.seconds, 3)
    return TrainResult(str(path), str(work.folder), trainer.step, seconds, best, first, last)


def _of(options: Options) -> str:
    return "" if options.steps >= MOST_STEPS else f" of {options.steps}"


def _recipe(request: TrainRequest, former: State | None, prepared: PreparedAvatar) -> Recipe:
    """Which way to learn: the one that follows the sound, where the folder has what it needs."""
    match request.recipe:
        case None if former is not None and former.options.recipe != "distill":
            return former.options.recipe
        case None if request.sync_loss or request.weights is not None:
            return "reference"
        case None:
            return "follow" if prepared.landmarks.shape[1] in MESHES else "reference"
        case "follow" | "reference":
            return request.recipe
    raise TrainingError(f"--recipe {request.recipe}: expected reference or follow")


def _minutes(request: TrainRequest, recipe: Recipe) -> float | None:
    if request.minutes is not None or request.steps is not None or request.epochs is not None:
        return request.minutes
    return MINUTES if recipe == "follow" else None


def _options(
    request: TrainRequest,
    recipe: Recipe,
    frames: int,
    former: State | None,
    progress: StepProgress,
) -> Options:
    """What decides the result, all of it chosen."""
    device = device_of(request.device)
    usual = DEFAULTS[recipe]
    if former is not None and former.options.recipe == recipe:
        usual = Usual(*(getattr(former.options, name) for name in Usual._fields))
    told = {name: getattr(request, name) for name in Usual._fields}
    chosen = usual._replace(**{name: v for name, v in told.items() if v is not None})
    threads = request.threads
    if threads is None:
        threads = former.options.threads if former else processors()
    steps = request.steps
    if steps is None and recipe == "follow" and request.epochs is None:
        steps = MOST_STEPS
    elif steps is None:
        per_epoch = -(-frames // chosen.batch) if chosen.batch > 0 else 1
        steps = per_epoch * (EPOCHS if request.epochs is None else request.epochs)
    if request.validate_every is not None:
        validate_every = request.validate_every
    elif former is not None:
        validate_every = former.options.validate_every
    else:
        validate_every = LOOK_EVERY if recipe == "follow" else max(1, steps // VALIDATIONS)
    if recipe == "follow" and request.weights is not None:
        raise TrainingError(
            "--weights belongs to --recipe reference; follow begins with a network of its own"
        )
    if recipe == "follow" and request.sync_loss:
        raise TrainingError("--sync-loss belongs to --recipe reference; follow learns otherwise")
    return checked(
        Options(
            recipe=recipe,
            steps=steps,
            sync_loss=request.sync_loss,
            perceptual=_perceptual_hash(request, former, progress),
            start=_start_hash(request, former),
            precision=precision_of(request.precision, device),
            device=device,
            validate_every=validate_every,
            threads=threads,
            **chosen._asdict(),
        )
    )


def _start_hash(request: TrainRequest, former: State | None) -> str:
    """Of the weights to begin with."""
    if request.weights is None:
        return "" if former is None else former.options.start
    return file_hash(Path(request.weights))


def _perceptual_file(request: TrainRequest) -> Path | None:
    if request.perceptual == "off":
        return None
    return find_vgg() if request.perceptual == "auto" else Path(request.perceptual)


def _perceptual_hash(request: TrainRequest, former: State | None, progress: StepProgress) -> str:
    path = _perceptual_file(request)
    if path is not None:
        return file_hash(path)
    if request.perceptual == "auto" and former is None:
        progress.say(
            "no VGG19 weights (vgg19-*.pth) in torch's cache: trained without the perceptual loss"
        )
    return ""


def _perceptual(request: TrainRequest, options: Options) -> Perceptual | None:
    path = _perceptual_file(request)
    return None if path is None or not options.perceptual else load_perceptual(path)


def _workers(wanted: int | None, options: Options) -> int:
    if wanted is not None:
        return max(1, wanted)
    return 1 if options.device == "cpu" else max(1, min(8, processors() - 1))


def _key(prepared: PreparedAvatar, encoder: Encoder) -> str:
    """Hash of what is learnt from."""
    digest = hashlib.sha256(hashlib.sha256(encoder.onnx).digest())
    for name in _DATA:
        if name in prepared.manifest.files:
            digest.update(prepared.manifest.files[name].sha256.encode())
    return digest.hexdigest()
