# SPDX-License-Identifier: Apache-2.0
"""Learning from a teacher: any frame of its loop, any sound, and what it makes of both.

The teacher's answer is a function of what the student is given, so there is nothing to guess, and
pixels alone teach it. The image half runs once for several sounds of a frame; the decoder's last
stages run in the window that is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lipsync_fast import _native
from lipsync_fast.arrays import F32, U8
from lipsync_fast.models.normless import decode_window, passing_network
from lipsync_fast.models.unet import UNet
from lipsync_fast.train.exam import Exam, motion
from lipsync_fast.train.follow import AVERAGE, SETTLES
from lipsync_fast.train.hearing import Sounds
from lipsync_fast.train.learner import Learner
from lipsync_fast.train.losses import weighted_loss
from lipsync_fast.train.options import Options
from lipsync_fast.train.state import Best
from lipsync_fast.train.teacher import Seat, Teacher
from lipsync_fast.train.trainer import autocast, on_device
from lipsync_fast.train.validate import Look

EACH = 3
"""Sounds of a frame in a step."""
MARGIN = 3
"""Pixels around the window that are made and not looked at: what is there lacks context."""
STILL_WEIGHT, MOVING_WEIGHT, SLOPE_WEIGHT = 0.5, 4.0, 0.7
"""What errors weigh everywhere, where sound moves the picture more, and those of differences
between neighbours."""
SEEN_FRAMES, SEEN_SOUNDS = 6, 24
"""From which it is known what sound moves."""


class Questions(NamedTuple):
    """F frames and B sounds, B / F for each frame one behind the other.

    Attributes:
        image: F x 6 x R x R float32.
        audio: B x 32 x 16 x 16 float32.
        frames: of the sounds, B numbers.
    """

    image: F32
    audio: F32
    frames: list[int]


class TaughtBatch(NamedTuple):
    """Questions and answers, float32.

    Attributes:
        image, audio: see ``Questions``.
        target: B x 3 x H x W, the window.
        weight: B x 1 x H x W, of an error there.
    """

    image: F32
    audio: F32
    target: F32
    weight: F32


class TaughtData:
    """Makes batches.

    Args:
        teacher: answers.
        seat: the student's.
        frames: to learn from.
        sounds: to learn from.
        batch: pictures of a step.
        seed: of what is random.
    """

    def __init__(
        self,
        teacher: Teacher,
        seat: Seat,
        frames: Sequence[int],
        sounds: Sounds,
        batch: int,
        seed: int,
    ) -> None:
        self.seat, self._teacher, self._sounds = seat, teacher, sounds
        self._frames = np.array(frames)
        self._count, self._seed = max(1, batch // EACH), seed
        self._weight = self._weights()

    def questions(self, step: int) -> Questions:
        """What a step asks; a pure function of its number."""
        rng = np.random.default_rng([self._seed, 3, step])
        shown = rng.choice(self._frames, self._count, replace=self._count > len(self._frames))
        heard = rng.integers(len(self._sounds), size=self._count * EACH)
        return Questions(
            np.stack([self.seat.image(int(i)) for i in shown]),
            np.stack([self._sounds.block(int(i)) for i in heard]),
            [int(i) for i in np.repeat(shown, EACH)],
        )

    def batch(self, step: int) -> TaughtBatch:
        """The same with the teacher's answers."""
        asked = self.questions(step)
        made = self._teacher.made(asked.frames, list(asked.audio))
        window = self.seat.window
        target = [self.seat.target(f, m, window) for f, m in zip(asked.frames, made, strict=True)]
        weight = [self._weight * self.seat.shown(frame) for frame in asked.frames]
        return TaughtBatch(asked.image, asked.audio, np.stack(target), np.stack(weight)[:, None])

    def _weights(self) -> F32:
        """More where sound moves the teacher's picture: H x W."""
        rng = np.random.default_rng([self._seed, 4])
        count = min(SEEN_FRAMES, len(self._frames))
        shown = rng.choice(self._frames, count, replace=False)
        heard = rng.integers(len(self._sounds), size=SEEN_SOUNDS)
        blocks = [self._sounds.block(int(i)) for i in heard] * count
        made = self._teacher.made([int(i) for i in np.repeat(shown, SEEN_SOUNDS)], blocks)
        moves = motion(np.stack(made), SEEN_SOUNDS, self._teacher.region)
        size = self.seat.window.size
        part = np.asarray(Image.fromarray(moves).resize(size, Image.Resampling.BILINEAR))
        most = max(1e-6, float(part.max()))
        return np.asarray(STILL_WEIGHT + MOVING_WEIGHT * part / most, np.float32)


class TaughtLesson:
    """See the module, and ``trainer.Lesson``.

    Args:
        options: what was asked for.
        data: makes batches.
        exam: held-out frames and sound.

    Attributes:
        net: what is learnt.
    """

    def __init__(self, options: Options, data: TaughtData, exam: Exam) -> None:
        self.options, self._data, self._exam = options, data, exam
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        self.net = passing_network(options.width, options.region).train().to(self.device)
        self._learner = Learner(self.net, options, AVERAGE, self._show)
        self._window = data.seat.window
        self._grown = self._window.grown(MARGIN, options.region)
        self._like = UNet(options.width, options.region).eval()

    def restore(self, tensors: dict[str, Any]) -> None:
        """Take up what ``tensors`` gave."""
        self._learner.restore(tensors)

    def tensors(self) -> dict[str, Any]:
        """All that a step changes."""
        return self._learner.tensors()

    def batch(self, step: int) -> TaughtBatch:
        """What a step sees."""
        return self._data.batch(step)

    def learn(self, step: int, batch: TaughtBatch) -> dict[str, float]:
        """One step; its losses."""
        rate = self._learner.rate(step, SETTLES)
        image, audio, target, weight = (on_device(torch.from_numpy(a), self.device) for a in batch)
        with autocast(self.options):
            made = self._made(self.net, image, audio)
        error = made - target
        loss = weighted_loss(error, weight, SLOPE_WEIGHT)
        total = self._learner.step(step, loss, rate)
        return {"loss": total, "rate": rate, "pixel": float(error.abs().mean().item())}

    def kept(self) -> dict[str, Tensor]:
        """The averaged weights, their norms measured, in the family's form."""
        return self._learner.kept()

    def look(self) -> Look:
        """How like its teacher it is on held-out frames and sound."""
        self._like.load_state_dict(self.kept())
        return self._exam.look(answers(self._like.to(self.device), self._exam, self._data.seat))

    @staticmethod
    def better(found: Best, best: Best) -> bool:
        """The one that is nearer where sound moves the teacher's picture."""
        return found.mouth < best.mouth

    def _made(self, net: UNet, image: Tensor, audio: Tensor) -> Tensor:
        """The window that sounds ask for: B x 3 x H x W in 0..1."""
        each = len(audio) // len(image)
        levels = tuple(x.repeat_interleave(each, 0) for x in net.encode_image(image))
        made = decode_window(net, levels, net.audio_model(audio), self._grown)
        inner = self._window.seen_from(self._grown)
        return made[(slice(None), slice(None), *inner.slices)]

    def _show(self, net: UNet, number: int) -> None:
        """Run a network over questions from which norms are measured."""
        asked = self._data.questions(number)
        image, audio = (
            on_device(torch.from_numpy(a), self.device) for a in (asked.image, asked.audio)
        )
        self._made(net, image, audio)


@torch.no_grad()
def answers(net: UNet, exam: Exam, seat: Seat) -> list[U8]:
    """A network's windows for the questions of an exam, as an avatar would show them."""
    device = next(net.parameters()).device
    rows, columns = seat.window.slices
    out: list[U8] = []
    levels: tuple[Tensor, ...] = ()
    for at, (frame, block) in enumerate(zip(exam.frames, exam.blocks, strict=True)):
        if at == 0 or frame != exam.frames[at - 1]:
            levels = net.encode_image(torch.from_numpy(seat.image(frame))[None].to(device))
        made = net.decode(levels, torch.from_numpy(block)[None].to(device))
        part = made[0, :, rows, columns].float().cpu().numpy()
        out.append(_native.region_output(np.ascontiguousarray(part)))
    return out
