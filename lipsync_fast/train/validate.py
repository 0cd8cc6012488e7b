# SPDX-License-Identifier: Apache-2.0
"""Looking at held-out frames: how far off they are, and a picture of them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.avatars.contact_sheet import contact_sheet
from lipsync_fast.models.unet import UNet
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet
from lipsync_fast.train.data import Data, looked_at
from lipsync_fast.train.losses import mouth
from lipsync_fast.train.state import Alike, Best, Follows

TILES, COLUMNS = 12, 4
_GREY = 255


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at held-out frames saw.

    Attributes:
        loss: mean absolute difference over the region, in grey levels.
        mouth: the same over the mouth.
        sheet: up to 12 of the frames as a JPEG, target left, output right.
        follows: how far the mouth follows the sound, where that is measured.
        alike: how a student's mouth is like its teacher's.
    """

    loss: float
    mouth: float
    sheet: bytes
    follows: Follows | None = None
    alike: Alike | None = None

    def best(self, step: int) -> Best:
        """As it is kept with the weights."""
        return Best(step, self.loss, self.mouth, self.follows, self.alike)

    def numbers(self) -> dict[str, float]:
        """A line of validation.jsonl, but for the step."""
        seen = {"loss": self.loss, "mouth": self.mouth}
        for more in (self.follows, self.alike):
            seen |= {} if more is None else msgspec.structs.asdict(more)
        return seen


class Validation:
    """Held-out frames.

    Args:
        data: where they come from.
        held: their numbers.
        batch: how many to run together.
        synthetic: whether the person shown does not exist; said in the picture.
    """

    def __init__(self, data: Data, held: list[int], batch: int, synthetic: bool) -> None:
        self._data, self._batch = data, batch
        self._samples = looked_at(held)
        self._packet = xmp_packet(synthetic)

    @torch.no_grad()
    def look(self, net: UNet, device: torch.device) -> Look:
        """Run the network, as it would run in an avatar (float32, norms by their averages)."""
        training = net.training
        net.eval()
        errors, mouths, tiles = [], [], []
        top, bottom, left, right = mouth(net.region)
        shown = {int(p) for p in np.linspace(0, len(self._samples) - 1, TILES)}
        for first in range(0, len(self._samples), self._batch):
            batch = self._data.batch(self._samples[first : first + self._batch])
            made = net(
                torch.from_numpy(batch.image).to(device), torch.from_numpy(batch.audio).to(device)
            )
            output = made.float().cpu().numpy()
            difference = np.abs(output - batch.target)
            errors += [float(d.mean(dtype=np.float64)) * _GREY for d in difference]
            mouths += [
                float(d[:, top:bottom, left:right].mean(dtype=np.float64)) * _GREY
                for d in difference
            ]
            tiles += [
                (first + k, batch.target[k], output[k])
                for k in range(len(output))
                if first + k in shown
            ]
        net.train(training)
        pictures = [np.concatenate([_rgb(t), _rgb(o)], axis=1) for _, t, o in tiles]
        captions = [
            f"frame {self._samples[k][0]}: target | output, mouth {mouths[k]:.1f}"
            for k, _, _ in tiles
        ]
        return Look(
            float(np.mean(errors)),
            float(np.mean(mouths)),
            sheet_jpeg(contact_sheet(pictures, captions, columns=COLUMNS), self._packet),
        )


def sheet_jpeg(sheet: Image.Image, packet: bytes) -> bytes:
    """A sheet as a JPEG that says, by its XMP packet, who is shown."""
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=90)
    return jpeg_with_xmp(out.getvalue(), packet)


def _rgb(planes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """3 x R x R BGR in 0..1 to R x R x 3 uint8 RGB."""
    levels = np.clip(np.nan_to_num(planes) * _GREY, 0, _GREY).astype(np.uint8)
    return np.ascontiguousarray(levels[::-1].transpose(1, 2, 0))
