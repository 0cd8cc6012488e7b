# SPDX-License-Identifier: Apache-2.0
"""Learning that follows the sound: pictures of a shut mouth, and what sound makes of them.

    a frame, mostly one whose mouth is shut          -> input, whole and masked
    frames in which the head is alike, laid over it  -> what shall come out, in a window
    sounds in which just their mouths are heard      -> audio  (hearing.py)

So the input never tells the mouth that shall come out: neither by the picture, which is the same
for all mouths, nor by what a mask leaves over. And it is what the network gets in an avatar, whose
loop has frames of a shut mouth. The image half runs once for all mouths of a frame.
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
from lipsync_fast.families.synctalk2d import REGION_BORDER
from lipsync_fast.geometry import Rect
from lipsync_fast.models.normless import decode_window, reference_state
from lipsync_fast.models.unet import UNet
from lipsync_fast.train.data import Crops
from lipsync_fast.train.hearing import Hearing, Sounds
from lipsync_fast.train.look import FollowValidation
from lipsync_fast.train.losses import PERCEPTUAL_WEIGHT, Perceptual
from lipsync_fast.train.mouths import MEASURES, Mouths
from lipsync_fast.train.options import Options
from lipsync_fast.train.state import Best
from lipsync_fast.train.trainer import autocast, descend, on_device
from lipsync_fast.train.validate import Look

FRAMES = 2
"""Pictures of a step; its batch are mouths, spread over them."""
OPEN_SHARE = 0.3
"""How often the picture may show any mouth: an avatar whose film has no silence gets its loop's
mouths shut by the network itself."""
ALIKE = 60
"""So many frames in which the head is most alike may lend their mouth."""
LIPS_WEIGHT, FACE_WEIGHT, SLOPE_WEIGHT = 4.0, 0.5, 0.7
"""What errors weigh at the lips more than elsewhere, everywhere, and those of differences between
neighbours."""
LIPS_ROOM, SOFT = 0.12, 5
"""Around the lips, in widths of the window; over how many pixels outlines are soft."""
FADE = 12
"""Pixels over which the window becomes the picture's own."""
EDGE, EDGE_WEIGHT = 4, 2.0
HEARD_WEIGHT = 0.05
AVERAGE = 0.998
"""Weights are averaged over the last steps: those are packed."""
WARM = 100


class FollowBatch(NamedTuple):
    """F pictures and B mouths, B / F for each picture one behind the other, float32.

    Attributes:
        image: F x 6 x R x R.
        target: B x 3 x H x W, the window.
        weight: B x 1 x H x W, of an error there.
        audio: B x 32 x 16 x 16.
        measures: B x 8, of the mouths.
    """

    image: F32
    target: F32
    weight: F32
    audio: F32
    measures: F32


class FollowData:
    """Makes batches.

    Args:
        crops: of the film's frames.
        mouths: of the film.
        sounds: to choose from.
        nearest: for each frame the numbers of those that sound like its mouth.
        window: in the region.
        batch: mouths of a step.
        seed: of what is random.
    """

    def __init__(
        self,
        crops: Crops,
        mouths: Mouths,
        sounds: Sounds,
        nearest: NDArray[np.int32],
        window: Rect,
        batch: int,
        seed: int,
    ) -> None:
        self.crops, self.mouths, self.sounds = crops, mouths, sounds
        self._nearest, self.window = nearest, window
        self._each, self._seed = max(1, batch // FRAMES), seed
        self._soft = faded(window)

    def batch(self, step: int) -> FollowBatch:
        """What a step sees."""
        rng = np.random.default_rng([self._seed, 2, step])
        m = self.mouths
        images, targets, weights, audio, measures = [], [], [], [], []
        for _ in range(FRAMES):
            among = m.usable if rng.random() < OPEN_SHARE or not len(m.shut) else m.shut
            frame = int(rng.choice(among))
            image = _native.region_input(self.crops.crop(frame), REGION_BORDER)
            own = torch.from_numpy(image[:3][(slice(None), *self.window.slices)].copy())
            near = m.usable[np.argsort(m.alike(frame, m.usable), kind="stable")[:ALIKE]]
            images.append(image)
            for other in rng.choice(near, self._each, replace=len(near) < self._each):
                lips, face = self.parts(int(other), frame)
                mixed = self._soft * face
                targets.append(self.laid_over(int(other), frame) * mixed + own * (1 - mixed))
                weights.append(FACE_WEIGHT + LIPS_WEIGHT * lips[None])
                sound = self._nearest[other, int(rng.integers(self._nearest.shape[1]))]
                audio.append(self.sounds.block(int(sound)))
                measures.append(m.measures[other])
        return FollowBatch(
            np.stack(images),
            torch.stack(targets).numpy(),
            torch.stack(weights).numpy(),
            np.stack(audio),
            np.stack(measures),
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
        crop = self.crops.crop(what)
        inner = crop[REGION_BORDER:-REGION_BORDER, REGION_BORDER:-REGION_BORDER, ::-1]
        picture = torch.from_numpy(np.ascontiguousarray(inner.transpose(2, 0, 1))).float()
        box, side = self.window, picture.shape[1]
        rows, columns = np.mgrid[box.y : box.y + box.height, box.x : box.x + box.width]
        at = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
        place = (self.mouths.laid_over(what, onto) @ at + 0.5) / side * 2 - 1
        grid = torch.from_numpy(place.T.reshape(1, box.height, box.width, 2)).float()
        made = functional.grid_sample(
            picture[None], grid, mode="bicubic", padding_mode="border", align_corners=False
        )
        return made[0].clamp(0, 255) / 255


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
    """Error of a window and of its slopes, and of its edge against the picture before.

    All B x 3 x H x W in 0..1, but ``weight``, B x 1 x H x W, and ``edge``, H x W.
    """
    error = made - target
    loss = (error.abs() * weight).mean()
    for dim in (2, 3):
        slope = torch.diff(error, dim=dim).abs()
        loss = (
            loss + SLOPE_WEIGHT * (slope * weight[:, :, : slope.shape[2], : slope.shape[3]]).mean()
        )
    return loss + EDGE_WEIGHT * ((made - before).abs() * edge).mean()


class FollowLesson:
    """See the module, and ``trainer.Lesson``.

    Args:
        options: what was asked for.
        data: makes batches.
        hearing: says how much each measure counts.
        validation: held-out frames.
        start: the normless network to begin with.
        perceptual: that loss, where its weights are at hand.
    """

    def __init__(
        self,
        options: Options,
        data: FollowData,
        hearing: Hearing,
        validation: FollowValidation,
        start: UNet,
        perceptual: Perceptual | None,
    ) -> None:
        self.options, self._data, self._validation = options, data, validation
        self.device = torch.device(options.device)
        torch.manual_seed(options.seed)
        self.net = nn.ModuleDict(
            {"unet": start, "heard": nn.Linear(16 * options.width, MEASURES)}
        ).to(self.device)
        self.net["unet"].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._average = {k: v.clone() for k, v in self.net["unet"].state_dict().items()}
        self._perceptual = perceptual
        if perceptual is not None:
            perceptual.to(self.device)
        self._optimiser = torch.optim.AdamW(
            self.net.parameters(), options.rate, betas=(0.9, 0.98), weight_decay=1e-3
        )
        self._scaler = torch.amp.GradScaler(
            options.device, enabled=options.precision == "fp16" and options.device == "cuda"
        )
        self._edge = edge_of(data.window).to(self.device)
        weight = hearing.hearable**2
        weight[0] *= 2
        self._counts = torch.from_numpy(weight + 0.02).to(self.device)

    def restore(self, tensors: dict[str, Any]) -> None:
        """Take up what ``tensors`` gave."""
        self.net.load_state_dict(tensors["net"])
        self._average = {k: v.to(self.device) for k, v in tensors["average"].items()}
        self._optimiser.load_state_dict(tensors["optimiser"])
        self._scaler.load_state_dict(tensors["scaler"])

    def tensors(self) -> dict[str, Any]:
        """All that a step changes."""
        return {
            "net": self.net.state_dict(),
            "average": self._average,
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def batch(self, step: int) -> FollowBatch:
        """What a step sees."""
        return self._data.batch(step)

    def kept(self) -> dict[str, Tensor]:
        """The averaged weights, in the family's form."""
        state = {k: v.cpu() for k, v in self._average.items()}
        return reference_state(state, self.options.width, self.options.region)

    def look(self) -> Look:
        """How it does on held-out frames."""
        return self._validation.look(self.kept(), self.device)

    @staticmethod
    def better(found: Best, best: Best) -> bool:
        """The one that follows better; of those that are as good, the later one."""
        if found.follows is None or best.follows is None:
            return found.loss < best.loss
        return round(found.follows.r, 2) >= round(best.follows.r, 2)

    def learn(self, step: int, batch: FollowBatch) -> dict[str, float]:
        """One step; its losses."""
        rate = self.options.rate * min(1.0, (step + 1) / WARM)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        image, target, weight, audio, measures = (torch.from_numpy(a) for a in batch)
        image, target, weight, audio = (
            on_device(t, self.device) for t in (image, target, weight, audio)
        )
        measures = measures.to(self.device)
        net, each = self.net["unet"], len(target) // len(image)
        assert isinstance(net, UNet)
        window = (slice(None), slice(0, 3), *self._data.window.slices)
        before = image[window].repeat_interleave(each, 0)
        with autocast(self.options):
            levels = tuple(x.repeat_interleave(each, 0) for x in net.encode_image(image))
            made, heard = decode_window(net, levels, audio, self._data.window)
            told = self.net["heard"](heard.mean((2, 3)))
        parts = {
            "pixel": picture_loss(made, target, before, weight, self._edge),
            "heard": ((told.float() - measures) ** 2 * self._counts).mean(),
        }
        loss = parts["pixel"] + HEARD_WEIGHT * parts["heard"]
        if self._perceptual is not None:
            with autocast(self.options):
                parts["perceptual"] = self._perceptual(made, target)
            loss = loss + PERCEPTUAL_WEIGHT * parts["perceptual"].float()
        total = descend(loss, self.net.parameters(), self._optimiser, self._scaler)
        self._average_in(step)
        return {"loss": total, "rate": rate, **{k: float(v.item()) for k, v in parts.items()}}

    @torch.no_grad()
    def _average_in(self, step: int) -> None:
        """Draw the averaged weights towards the present ones, faster at the beginning."""
        keep = min(AVERAGE, (step + 1) / (step + 20))
        for name, value in self.net["unet"].state_dict().items():
            self._average[name].lerp_(value, 1 - keep)
