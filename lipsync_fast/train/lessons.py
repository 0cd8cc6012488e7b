# SPDX-License-Identifier: Apache-2.0
"""Put together what a training learns from: a lesson of each of the two ways to learn.

Hearing is learnt first and kept in the training's folder (``hearing.pt``), whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lipsync_fast.arrays import F32
from lipsync_fast.errors import CheckpointError, TrainingError
from lipsync_fast.geometry import Rect
from lipsync_fast.models.checkpoints import load_unet
from lipsync_fast.models.packed import packed_encoder
from lipsync_fast.models.unet import UNet
from lipsync_fast.prepare.folder import PreparedAvatar
from lipsync_fast.prepare.stabilise import runs
from lipsync_fast.train.data import Crops, Data, Order, split
from lipsync_fast.train.exemplars import Exemplars
from lipsync_fast.train.follow import FollowData, FollowLesson
from lipsync_fast.train.hearing import (
    SILENT,
    Hearing,
    Sounds,
    Tuning,
    features_of,
    sounds_to_choose_from,
    told,
)
from lipsync_fast.train.look import FollowValidation, correlation
from lipsync_fast.train.losses import Perceptual
from lipsync_fast.train.mouths import Mouths
from lipsync_fast.train.options import Options
from lipsync_fast.train.progress import StepProgress
from lipsync_fast.train.reference import Material, ReferenceLesson
from lipsync_fast.train.sound import Encoder, extract_features, mel_of
from lipsync_fast.train.state import HEARING, Work
from lipsync_fast.train.stopping import Stop
from lipsync_fast.train.trainer import repeatable
from lipsync_fast.train.validate import Validation

SILENCE_ROWS = 160
"""Two seconds of nothing, to know what silence sounds like."""


@dataclass(frozen=True, slots=True)
class Following:
    """A lesson that follows the sound, and what packing needs of it.

    Attributes:
        lesson: it.
        hearing: the tuned encoder.
        mouths: of the film.
        window: what is shown of the region.
        silence: the audio block of silence.
    """

    lesson: FollowLesson
    hearing: Hearing
    mouths: Mouths
    window: Rect
    silence: F32


def reference_lesson(
    prepared: PreparedAvatar,
    encoder: Encoder,
    options: Options,
    weights: Path | None,
    perceptual: Perceptual | None,
) -> ReferenceLesson:
    """SyncTalk_2D's way.

    Raises:
        TrainingError: the sound or the options do not do.
        CheckpointError: weights are no such thing.
    """
    learnt, held = split(len(prepared))
    features = extract_features(
        encoder, sound_of(prepared), len(prepared), options.audio, options.threads
    )
    data = Data(Crops(prepared, options.region), features)
    start = None
    if weights is not None:
        start = _checkpoint(weights, options).state_dict()
    validation = Validation(data, held, options.batch, prepared.manifest.synthetic)
    order = Order(learnt, options.batch, options.seed)
    return ReferenceLesson(options, Material(data, order, validation, start, perceptual))


def following(
    prepared: PreparedAvatar,
    encoder: Encoder,
    options: Options,
    perceptual: Perceptual | None,
    work: Work,
    key: str,
    progress: StepProgress,
) -> Following:
    """The way that follows the sound; learns to hear first, where that was not done yet.

    Args:
        key: hash of all that is learnt from.

    Raises:
        TrainingError: the sound, the landmarks or the options do not do.
        KeyboardInterrupt, SystemExit: a signal came; hearing is begun anew next time.
    """
    learnt, held = split(len(prepared))
    device = torch.device(options.device)
    rects = [prepared.rect(i) for i in range(len(prepared))]
    mouths = Mouths(prepared.landmarks, rects, options.region, learnt)
    mel = mel_of(sound_of(prepared), options.audio)
    hearing = _hearing(encoder, mel, mouths, options, work, key, progress).to(device)
    with repeatable(options):
        pool, heard = sounds_to_choose_from(
            hearing, mel, _parts(learnt), options.audio, options.seed
        )
        features = features_of(hearing.encoder, mel, device)
        film = Sounds([features], options.audio)
        there = [i for i in held if np.isfinite(mouths.opening[i])]
        r = correlation(told(features, hearing.lag)[there, 0], mouths.opening[there])
        progress.say(f"the tuned ear foretells the opening of held-out frames with r {r:.2f}")
        quiet = np.full((SILENCE_ROWS, mel.shape[1]), SILENT, np.float32)
        silence = Sounds([features_of(hearing.encoder, quiet, device)], options.audio)
    crops = Crops(prepared, options.region)
    window = mouths.window(options.region)
    exemplars = Exemplars(crops, mouths, hearing.hearable, options.seed)
    data = FollowData(
        crops,
        mouths,
        exemplars,
        pool,
        exemplars.shares(heard),
        window,
        options.batch,
        options.seed,
    )
    still = silence.block(len(silence) // 2)
    like = UNet(options.width, options.region)
    validation = FollowValidation(prepared, crops, mouths, held, film, still, window, like)
    lesson = FollowLesson(options, data, validation, perceptual, hearing.lag)
    return Following(lesson, hearing, mouths, window, still)


def sound_of(prepared: PreparedAvatar) -> NDArray[np.int16]:
    """The film's sound.

    Raises:
        TrainingError: it has none.
    """
    sound = prepared.sound()
    if sound is None:
        raise TrainingError(
            f"{prepared.path}: the video has no sound; nothing can be learnt from it"
        )
    return sound


def _parts(learnt: Sequence[int]) -> list[tuple[int, int]]:
    """First frames and ends of what follows each other."""
    flags = np.zeros(max(learnt) + 1, np.bool_)
    flags[list(learnt)] = True
    return runs(flags)


def _hearing(
    encoder: Encoder,
    mel: F32,
    mouths: Mouths,
    options: Options,
    work: Work,
    key: str,
    progress: StepProgress,
) -> Hearing:
    """The tuned encoder, from the training's folder or made."""
    former = work.tensors(HEARING)
    if former is not None and former.get("key") == key:
        return Hearing.restored(former["hearing"])
    net = packed_encoder(encoder.onnx, encoder.source)
    torch.manual_seed(options.seed)
    with Stop() as stop, repeatable(options):
        tuning = Tuning(
            net,
            mel,
            mouths,
            torch.device(options.device),
            options.seed,
            options.hearing,
            options.audio.levelled,
        )
        progress.say(
            "what can be heard of the mouth, by parts of the film that were not heard before:"
            f" opening r {tuning.kernel.hearable[0]:.2f}, width {tuning.kernel.hearable[1]:.2f}"
        )
        for step in range(options.hearing):
            loss = tuning.step(step)
            progress.step(step + 1, options.hearing, loss, "learns to hear: ")
            if stop.signal is not None:
                raise Stop.reason(stop.signal)
        hearing = tuning.done()
    progress.clear()
    progress.resting()
    work.save_tensors(HEARING, {"key": key, "hearing": hearing.state()})
    return hearing


def _checkpoint(path: Path, options: Options) -> UNet:
    """A checkpoint's network.

    Raises:
        CheckpointError: it is no such thing, or of another width.
    """
    net = load_unet(path, options.region)
    if net.width != options.width:
        raise CheckpointError(f"{path}: is of width {net.width}, --width is {options.width}")
    return net
