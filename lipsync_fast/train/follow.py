# SPDX-License-Identifier: Apache-2.0
"""Learning that follows the sound: what a sound makes of any picture.

    a frame, whatever its mouth does                -> input, whole and masked
    a film's few mouths (exemplars.py), laid over it -> what shall come out, in a window
    which of them it is                              -> given in the place of the sound
    sounds, and which mouths are heard in them       -> what gives that from the sound (hearing.py)

So the input never tells the mouth that shall come out: neither by the picture, which is the same
for all mouths, nor by what a mask leaves over. The picture's half learns from which mouth it is to
make, exactly, and the sound's half to say that: neither waits for the other. The image half runs
once for all mouths of a frame.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor, nn
from torch.nn import functional

from lipsync_fast import _native
from lipsync_fast.arrays import F32
from lipsync_fast.families.synctalk2d import AUDIO_SHAPE, REGION_BORDER, VECTORS
from lipsync_fast.geometry import Rect
from lipsync_fast.models.normless import decode_window, pass_sound_through, passing_network
from lipsync_fast.models.unet import UNet
from lipsync_fast.train.data import Crops
from lipsync_fast.train.exemplars import Exemplars
from lipsync_fast.train.hearing import Sounds
from lipsync_fast.train.learner import Learner
from lipsync_fast.train.look import FollowValidation
from lipsync_fast.train.losses import PERCEPTUAL_WEIGHT, Perceptual, texture_loss
from lipsync_fast.train.mouths import Mouths
from lipsync_fast.train.options import Options
from lipsync_fast.train.state import Best, Follows
from lipsync_fast.train.trainer import autocast, on_device
from lipsync_fast.train.validate import Look

FRAMES = 2
"""Pictures of a step; its batch are mouths, spread over them."""
LIPS_WEIGHT, FACE_WEIGHT = 4.0, 0.5
"""What errors weigh at the lips more than elsewhere, and everywhere."""
TEXTURE_WEIGHT = 0.4
"""What errors of the strength of fine detail weigh. Those of differences between neighbours count
not at all: they make mouths soft, for a picture without detail is never wrong about a place."""
LIPS_ROOM, SOFT = 0.12, 5
"""Around the lips, in widths of the window; over how many pixels outlines are soft."""
FADE = 12
"""Pixels over which the window becomes the picture's own."""
EDGE, EDGE_WEIGHT = 4, 8.0
LOUD = 4.0
"""What a mouth's whole share is in the bottleneck."""
HEARD = 24
"""Sounds of a step."""
NEAR_VECTORS = 1
"""Before and behind the vector that tells of a frame: these are listened to from the beginning."""
SHARP_WORTH = 0.3
"""What the film's sharpness is worth, as a correlation with the sound: half a minute of film tells
that to a tenth at best, and sharpness far better."""
HEARD_STEPS = 600
"""Steps in which sounds are learnt from; the pictures go on."""
AVERAGE = 0.998
"""Weights are averaged over the last steps: those are packed."""
SETTLES = 400
"""Steps after which the rate has fallen to 0.7 of what it was; it goes on so, for as long as one
likes."""


class FollowBatch(NamedTuple):
    """F pictures and B mouths, B / F for each picture one behind the other; S sounds. Float32.

    Attributes:
        image: F x 6 x R x R.
        target: B x 3 x H x W, the window.
        weight: B x 1 x H x W, of an error there.
        shares: B x K, which mouth it is.
        audio: S x 32 x 16 x 16.
        heard: S x K, which mouths are heard in it.
    """

    image: F32
    target: F32
    weight: F32
    shares: F32
    audio: F32
    heard: F32


class FollowData:
    """Makes batches.

    Args:
        crops: of the film's frames.
        mouths: of the film.
        exemplars: the mouths to learn.
        sounds: to choose from.
        heard: N x K, which mouths are heard in them.
        window: in the region.
        batch: mouths of a step.
        seed: of what is random.
    """

    def __init__(
        self,
        crops: Crops,
        mouths: Mouths,
        exemplars: Exemplars,
        sounds: Sounds,
        heard: F32,
        window: Rect,
        batch: int,
        seed: int,
    ) -> None:
        self.crops, self.mouths, self.exemplars, self.sounds = crops, mouths, exemplars, sounds
        self.window = window
        self._heard, self._each, self._seed = heard, max(1, batch // FRAMES), seed
        self._soft = faded(window)
        self._pictures = {int(i): _inside(crops.crop(int(i))) for i in exemplars.frames}

    def batch(self, step: int) -> FollowBatch:
        """What a step sees."""
        rng = np.random.default_rng([self._seed, 2, step])
        kinds = len(self.exemplars)
        images, targets, weights, chosen = [], [], [], []
        for _ in range(FRAMES):
            frame = int(rng.choice(self.mouths.usable))
            image = _native.region_input(self.crops.crop(frame), REGION_BORDER)
            own = torch.from_numpy(image[:3][(slice(None), *self.window.slices)].copy())
            images.append(image)
            for mouth in rng.choice(kinds, self._each, replace=kinds < self._each):
                other = int(self.exemplars.frames[mouth])
                lips, face = self.parts(other, frame)
                mixed = self._soft * torch.maximum(face, lips)
                targets.append(self.laid_over(other, frame) * mixed + own * (1 - mixed))
                weights.append(FACE_WEIGHT + LIPS_WEIGHT * lips[None])
                chosen.append(int(mouth))
        some = rng.integers(len(self.sounds), size=HEARD)
        return FollowBatch(
            np.stack(images),
            torch.stack(targets).numpy(),
            torch.stack(weights).numpy(),
            np.eye(kinds, dtype=np.float32)[chosen],
            np.stack([self.sounds.block(int(i)) for i in some]),
            self._heard[some],
        )

    def parts(self, what: int, onto: int) -> tuple[Tensor, Tensor]:
        """Where in the window lips are, and the face, of a frame laid over another: H x W, 0..1.

        Both frames' are one. What is outside the face, hair and collar, stays the picture's.
        """
        both = self.mouths.outlines(what, onto), self.mouths.outlines(onto, onto)
        room = round(LIPS_ROOM * self.window.width)
        lips = self._filled([lips for lips, _ in both], room)
        return lips, self._filled([face for _, face in both], 0)

    def _filled(self, outlines: list[NDArray[np.float64]], room: int) -> Tensor:
        """The inside of outlines, grown by so many pixels, soft: H x W."""
        box = self.window
        image = Image.new("L", (box.width, box.height))
        draw = ImageDraw.Draw(image)
        for outline in outlines:
            corners = [(float(x), float(y)) for x, y in outline - (box.x, box.y)]
            draw.polygon(corners, fill=255)
            if room:
                draw.line([*corners, corners[0]], fill=255, width=room, joint="curve")
        filled = image.filter(ImageFilter.GaussianBlur(SOFT / 2))
        return torch.from_numpy(np.array(filled, np.float32) / 255)

    def laid_over(self, what: int, onto: int) -> Tensor:
        """The window of a frame, its head laid over another frame's: 3 x H x W BGR in 0..1."""
        known = self._pictures.get(what)
        picture = _inside(self.crops.crop(what)) if known is None else known
        box, side = self.window, picture.shape[1]
        rows, columns = np.mgrid[box.y : box.y + box.height, box.x : box.x + box.width]
        at = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
        place = (self.mouths.laid_over(what, onto) @ at + 0.5) / side * 2 - 1
        grid = torch.from_numpy(place.T.reshape(1, box.height, box.width, 2)).float()
        made = functional.grid_sample(
            picture[None], grid, mode="bicubic", padding_mode="border", align_corners=False
        )
        return made[0].clamp(0, 255) / 255


def _inside(crop: NDArray[np.uint8]) -> Tensor:
    """A crop's region: 3 x R x R BGR in 0..255."""
    inner = crop[REGION_BORDER:-REGION_BORDER, REGION_BORDER:-REGION_BORDER, ::-1]
    return torch.from_numpy(np.ascontiguousarray(inner.transpose(2, 0, 1))).float()


def faded(window: Rect) -> Tensor:
    """1 inside a window, falling to 0 at its edges: H x W."""
    inner = torch.ones(1, 1, window.height - 2 * FADE, window.width - 2 * FADE)
    whole = functional.pad(inner, (FADE,) * 4)
    return functional.avg_pool2d(whole, FADE + 1, 1, FADE // 2)[0, 0]


def edge_of(window: Rect) -> Tensor:
    """1 in the outermost pixels of a window, where the picture's own must come out: H x W."""
    out = torch.ones(window.height, window.width)
    out[EDGE:-EDGE, EDGE:-EDGE] = 0
    return out


def picture_loss(
    made: Tensor, target: Tensor, before: Tensor, weight: Tensor, edge: Tensor
) -> Tensor:
    """Error of a window, of its detail, and of its edge against the picture before.

    All B x 3 x H x W in 0..1, but ``weight``, B x 1 x H x W, and ``edge``, H x W.
    """
    loss = ((made - target).abs() * weight).mean()
    loss = loss + TEXTURE_WEIGHT * texture_loss(made, target, weight)
    return loss + EDGE_WEIGHT * ((made - before).abs() * edge).mean()


class FollowLesson:
    """See the module, and ``trainer.Lesson``.

    Args:
        options: what was asked for.
        data: makes batches.
        validation: held-out frames.
        perceptual: that loss, where its weights are at hand.
        lag: how many frames before a frame the vector begins that tells of it.

    Attributes:
        net: what is learnt. Of the audio half's output only the first K channels count.
    """

    def __init__(
        self,
        options: Options,
        data: FollowData,
        validation: FollowValidation,
        perceptual: Perceptual | None,
        lag: int,
    ) -> None:
        self.options, self._data, self._validation = options, data, validation
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        self._kinds = len(data.exemplars)
        self.net = _listening_to(passing_network(options.width, options.region), self._kinds)
        told = VECTORS - 1 - lag
        near = range(max(0, told - NEAR_VECTORS), min(VECTORS, told + NEAR_VECTORS + 1))
        each = AUDIO_SHAPE[0] // VECTORS
        pass_sound_through(self.net.audio_model, each * near[0], each * len(near))
        self.net.train().to(self.device)
        self._learner = Learner(self.net, options, AVERAGE, self._show)
        self._perceptual = perceptual
        if perceptual is not None:
            perceptual.to(self.device)
        self._edge = edge_of(data.window).to(self.device)

    def restore(self, tensors: dict[str, Any]) -> None:
        """Take up what ``tensors`` gave."""
        self._learner.restore(tensors)

    def tensors(self) -> dict[str, Any]:
        """All that a step changes."""
        return self._learner.tensors()

    def batch(self, step: int) -> FollowBatch:
        """What a step sees."""
        return self._data.batch(step)

    def kept(self) -> dict[str, Tensor]:
        """The averaged weights, their norms measured, in the family's form."""
        return self._learner.kept()

    def _show(self, net: UNet, number: int) -> None:
        """Run a network over a batch from which norms are measured."""
        seen = self._data.batch(number)
        image, shares, audio = (
            on_device(torch.from_numpy(a), self.device)
            for a in (seen.image, seen.shares, seen.audio)
        )
        self._made(net, image, shares)
        net.audio_model(audio)

    def look(self) -> Look:
        """How it does on held-out frames."""
        return self._validation.look(self.kept(), self.device)

    @staticmethod
    def better(found: Best, best: Best) -> bool:
        """The one that follows better, where both are sharp; of those as good, the later one."""
        if found.follows is None or best.follows is None:
            return found.loss < best.loss
        return round(_worth(found.follows), 2) >= round(_worth(best.follows), 2)

    def learn(self, step: int, batch: FollowBatch) -> dict[str, float]:
        """One step; its losses."""
        rate = self._learner.rate(step, SETTLES)
        image, target, weight, shares, audio, heard = (
            on_device(torch.from_numpy(a), self.device) for a in batch
        )
        each = len(target) // len(image)
        before = image[(slice(None), slice(0, 3), *self._data.window.slices)]
        before = before.repeat_interleave(each, 0)
        with autocast(self.options):
            made = self._made(self.net, image, shares)
        parts = {"pixel": picture_loss(made, target, before, weight, self._edge)}
        loss = parts["pixel"]
        if step < HEARD_STEPS:
            with autocast(self.options):
                told = self.net.audio_model(audio)[:, : self._kinds]
            parts["heard"] = ((told.float() / LOUD - heard[:, :, None, None]) ** 2).sum(1).mean()
            loss = loss + parts["heard"]
        if self._perceptual is not None:
            with autocast(self.options):
                parts["perceptual"] = self._perceptual(made, target)
            loss = loss + PERCEPTUAL_WEIGHT * parts["perceptual"].float()
        total = self._learner.step(step, loss, rate)
        return {"loss": total, "rate": rate, **{k: float(v.item()) for k, v in parts.items()}}

    def _made(self, net: UNet, image: Tensor, shares: Tensor) -> Tensor:
        """The mouths that shares ask for, in the window: B x 3 x H x W."""
        each = len(shares) // len(image)
        levels = tuple(x.repeat_interleave(each, 0) for x in net.encode_image(image))
        deep = levels[-1]
        heard = torch.zeros_like(deep)
        heard[:, : self._kinds] = (LOUD * shares)[:, :, None, None].to(deep.dtype)
        return decode_window(net, levels, heard, self._data.window)


def _worth(found: Follows) -> float:
    """How good a mouth is: how it follows, less what it lacks of the film's sharpness."""
    return found.r + SHARP_WORTH * min(1.0, found.sharpness)


@torch.no_grad()
def _listening_to(net: UNet, kinds: int) -> UNet:
    """A network that takes no notice of what is behind the first channels of the audio half.

    They are never anything but 0 when it learns, so that it stays so.
    """
    first = next(m for m in net.fuse_conv.modules() if isinstance(m, nn.Conv2d))
    first.weight[:, first.in_channels // 2 + kinds :] = 0
    return net
