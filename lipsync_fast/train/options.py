# SPDX-License-Identifier: Apache-2.0
"""What a training is asked to do."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.errors import TrainingError

EPOCHS = 100
VECTORS = 16
WARM_STEPS = 100
FALL_SHARE, LAST_RATE = 0.3, 0.05

Precision = Literal["fp32", "fp16", "bf16"]
Device = Literal["cpu", "cuda"]
Gain = Literal["none", "auto"]
Recipe = Literal["reference", "follow", "distill"]
MOST_STEPS = 100_000_000
HEARING_STEPS = 160


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides a training's result, besides its data.

    A training goes on only with the same ones; ``steps`` alone may grow, which makes the learning
    rate's fall begin later where it falls.

    Attributes:
        recipe: SyncTalk_2D's way; the one that follows the sound; or that of a student, which
            learns from another network (of both the rate stays, so that they can go on for as
            long as one likes).
        steps: steps in all.
        batch: frames of a step.
        width: base channels of the network (the reference: 32).
        region: side of the generated square in pixels (the reference: 320).
        after: feature vectors of the sound behind a frame's start that it sees (the reference: 8).
        gain: whether the level of sound is evened out before it is heard (``audio.gain``).
        hearing: steps by which the audio encoder is tuned to the film's voice, before all others
            (the way that follows the sound).
        rate: the highest learning rate.
        sync_loss: weight of the sync loss; 0: none.
        perceptual: SHA-256 of the VGG19 weights' file; empty: no perceptual loss.
        start: SHA-256 of the weights that it begins with; empty: new ones.
        validate_every: steps between two looks at held-out frames.
        threads: of the processor; sums depend on their number.
    """

    recipe: Recipe = "reference"
    steps: Annotated[int, msgspec.Meta(ge=1, le=MOST_STEPS)]
    batch: Annotated[int, msgspec.Meta(ge=2, le=1024)] = 8
    width: Annotated[int, msgspec.Meta(ge=2, le=256)] = 32
    region: Annotated[int, msgspec.Meta(ge=224, le=1024)] = 320
    after: Annotated[int, msgspec.Meta(ge=2, le=8)] = 8
    gain: Gain = "none"
    hearing: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = HEARING_STEPS
    rate: Annotated[float, msgspec.Meta(gt=0)] = 1e-3
    sync_loss: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    perceptual: str = ""
    start: str = ""
    seed: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    precision: Precision = "fp32"
    device: Device = "cpu"
    validate_every: Annotated[int, msgspec.Meta(ge=1)] = 500
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1

    @property
    def audio(self) -> AudioWindow:
        """Which feature vectors a frame sees, and whether the sound's level is evened out."""
        gain = msgspec.UNSET if self.gain == "none" else self.gain
        return AudioWindow(before=VECTORS - self.after, after=self.after, gain=gain)

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0.

        It rises over the first 100 steps, stays, and falls in a line to a twentieth over the last
        three tenths.
        """
        warm = min(1.0, (step + 1) / min(WARM_STEPS, max(1, self.steps // 10)))
        left = (self.steps - step) / (FALL_SHARE * self.steps)
        return self.rate * warm * (LAST_RATE + (1 - LAST_RATE) * min(1.0, left))


def differing(before: Options, now: Options) -> list[str]:
    """What keeps ``now`` from going on where ``before`` stopped, one line each."""
    lines = []
    for name in Options.__struct_fields__:
        old, new = getattr(before, name), getattr(now, name)
        if name == "steps" and (new >= old or now.recipe != "reference"):
            continue
        if old != new:
            lines.append(f"{name.replace('_', '-')} was {old}, now {new}")
    return lines


def checked(options: Options) -> Options:
    """``options``, once their values are known to be possible.

    Raises:
        TrainingError: names the first that is not.
    """
    try:
        msgspec.convert(msgspec.to_builtins(options), Options)
    except msgspec.ValidationError as error:
        text = str(error)
        name = text.partition("`$.")[2].rstrip("`").replace("_", "-")
        raise TrainingError(f"--{name}: {text.partition(' - ')[0].lower()}") from None
    if options.region % 32:
        raise TrainingError(f"--region {options.region}: expected a multiple of 32, 224 or more")
    if options.width % 2:
        raise TrainingError(f"--width {options.width}: expected an even number (32, 16 or 8)")
    if options.precision == "fp16" and options.device == "cpu":
        raise TrainingError("--precision fp16 needs a GPU; on the CPU use fp32 (or bf16)")
    return options
