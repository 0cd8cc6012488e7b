# SPDX-License-Identifier: Apache-2.0
"""From a prepared folder to an avatar package: what ``avatar train`` does, without its options."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from lipsync_fast.errors import CheckpointError, OutputError, TrainingError
from lipsync_fast.machine import processors
from lipsync_fast.models.checkpoints import load_unet
from lipsync_fast.prepare.folder import PreparedAvatar
from lipsync_fast.train.data import Data, Order, split
from lipsync_fast.train.finish import pack, provenance_of
from lipsync_fast.train.losses import Perceptual, file_hash, find_vgg, load_perceptual
from lipsync_fast.train.options import EPOCHS, Device, Options, Precision, checked, differing
from lipsync_fast.train.progress import StepProgress
from lipsync_fast.train.sound import AudioFeatures, Encoder, extract_features, find_encoder
from lipsync_fast.train.state import SHEET, Best, State, Work
from lipsync_fast.train.trainer import Learning, Trainer
from lipsync_fast.train.validate import Validation

FOLDER = "training"
VALIDATIONS = 20
"""Looks at held-out frames in a training, unless told otherwise."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DATA = ("frames.bin", "frames.npy", "rects.npy", "sound.wav")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What the command line asked for; None: chosen here.

    Attributes:
        folder: the prepared folder.
        out: the package's path.
        audio_encoder: see ``sound.find_encoder``.
        work: the training's folder; ``training`` in the prepared one by default.
        perceptual: auto, off, or the file of VGG19's weights.
        weights: a U-Net's to begin with.
        restart: forget a former training.
        force: replace a package at ``out``.
    """

    folder: Path
    out: Path
    audio_encoder: str
    work: Path | None = None
    epochs: int | None = None
    steps: int | None = None
    batch: int = 8
    device: str = "auto"
    precision: str = "auto"
    sync_loss: float = 0.0
    perceptual: str = "auto"
    width: int = 32
    region: int = 320
    after: int = 8
    rate: float = 1e-3
    weights: Path | None = None
    seed: int = 0
    threads: int | None = None
    workers: int | None = None
    save_every: int = 200
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
    _check_out(request)
    work = Work(request.work or request.folder / FOLDER)
    with PreparedAvatar.open(request.folder) as prepared, work.locked():
        if request.restart:
            work.clear()
        return _train(request, prepared, work, StepProgress(quiet=request.quiet))


def _check_out(request: TrainRequest) -> None:
    """Refuse before hours of work what would be refused behind them."""
    out = request.out
    if out.exists() and not request.force:
        raise OutputError(f"{out}: already exists; --force replaces it")
    name = out.name.removesuffix(".lsa")
    if not _NAME.fullmatch(name):
        raise OutputError(
            f"--out: {name[:80]!r} cannot be an avatar's name (at most 64 letters, digits, . _ -)"
        )
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{out}: cannot be written ({parent} is not a folder to write to)")


def _train(
    request: TrainRequest, prepared: PreparedAvatar, work: Work, progress: StepProgress
) -> TrainResult:
    learnt, held = split(len(prepared))
    former = work.load()
    options = _options(request, len(learnt), former, progress)
    encoder = find_encoder(request.audio_encoder)
    key = _key(prepared, encoder)
    _check_former(former, options, key, work)
    data = Data(prepared, _features(prepared, encoder, options), options.region)
    learning = Learning(
        data,
        Order(learnt, options.batch, options.seed),
        Validation(data, held, options.batch, prepared.manifest.synthetic),
        key,
        None if former else _start(request.weights, options),
        _perceptual(request, options),
        _workers(request.workers, options),
        request.save_every,
    )
    trainer = Trainer(options, learning, work, former)
    if former is not None:
        progress.say(f"going on after step {trainer.step} of {options.steps}")
    trainer.run(progress)
    best = trainer.best
    if best is None:
        raise CheckpointError(f"{work.folder}: no weights were kept; begin anew with --restart")
    provenance = provenance_of(
        prepared, options, encoder, best, trainer.seconds, len(learnt), len(held)
    )
    weights = work.best(best)
    path = pack(
        prepared, request.out, weights, options, encoder, provenance, overwrite=request.force
    )
    progress.say(f"validation frames: {work.folder / SHEET}")
    first, last = work.losses()
    seconds = round(trainer.seconds, 3)
    return TrainResult(str(path), str(work.folder), options.steps, seconds, best, first, last)


def _features(prepared: PreparedAvatar, encoder: Encoder, options: Options) -> AudioFeatures:
    sound = prepared.sound()
    if sound is None:
        raise TrainingError(
            f"{prepared.path}: the video has no sound; nothing can be learnt from it"
        )
    return extract_features(encoder, sound, len(prepared), options.audio, options.threads)


def _options(
    request: TrainRequest, frames: int, former: State | None, progress: StepProgress
) -> Options:
    """What decides the result, all of it chosen."""
    device = _device(request.device)
    threads = request.threads
    if threads is None:
        threads = former.options.threads if former else processors()
    steps = request.steps
    if steps is None:
        per_epoch = -(-frames // request.batch) if request.batch > 0 else 1
        steps = per_epoch * (EPOCHS if request.epochs is None else request.epochs)
    if request.validate_every is not None:
        validate_every = request.validate_every
    elif former is not None:
        validate_every = former.options.validate_every
    else:
        validate_every = max(1, steps // VALIDATIONS)
    return checked(
        Options(
            steps=steps,
            batch=request.batch,
            width=request.width,
            region=request.region,
            after=request.after,
            rate=request.rate,
            sync_loss=request.sync_loss,
            perceptual=_perceptual_hash(request, former, progress),
            start="" if request.weights is None else file_hash(request.weights),
            seed=request.seed,
            precision=_precision(request.precision, device),
            device=device,
            validate_every=validate_every,
            threads=threads,
        )
    )


def _device(wanted: str) -> Device:
    if wanted not in ("auto", "cpu", "cuda"):
        raise TrainingError(f"--device {wanted}: expected auto, cpu or cuda")
    there = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise TrainingError("--device cuda: torch finds no GPU here (or is a build without CUDA)")
    return "cuda" if there else "cpu"


def _precision(wanted: str, device: Device) -> Precision:
    match wanted:
        case "auto" if device == "cpu":
            return "fp32"
        case "auto":
            return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
        case "fp32" | "fp16" | "bf16":
            return wanted
    raise TrainingError(f"--precision {wanted}: expected auto, fp32, fp16 or bf16")


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


def _start(path: Path | None, options: Options) -> dict[str, torch.Tensor] | None:
    if path is None:
        return None
    net = load_unet(path, options.region)
    if net.width != options.width:
        raise CheckpointError(f"{path}: is of width {net.width}, --width is {options.width}")
    return net.state_dict()


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


def _check_former(former: State | None, options: Options, key: str, work: Work) -> None:
    """Whether a former training can go on so."""
    if former is None:
        return
    reasons = differing(former.options, options)
    if former.data != key:
        reasons.append("the prepared folder or the audio encoder has changed")
    if reasons:
        raise TrainingError(
            f"{work.folder}: a training of {former.step} steps lies here that cannot go on so:"
            f" {'; '.join(reasons)}; give the former options, or --restart to forget it"
        )
