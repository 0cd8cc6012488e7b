# SPDX-License-Identifier: Apache-2.0
"""How far a made mouth follows sound that was not learnt from, measured so that nothing leaks.

The picture under the sound is from another moment than the sound, and its mouth is shut: what the
mouth then does can only come from the sound. It is laid into the frame, the face mesh is laid over
it as over the film, and the lips' opening is compared with the film's at the sound's time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipsync_fast import _native
from lipsync_fast.arrays import F32
from lipsync_fast.avatars.contact_sheet import contact_sheet
from lipsync_fast.families.synctalk2d import REGION_BORDER
from lipsync_fast.geometry import Rect
from lipsync_fast.models.unet import UNet
from lipsync_fast.prepare.face_nets import POINTS
from lipsync_fast.prepare.folder import PreparedAvatar
from lipsync_fast.prepare.mesh_detector import MeshDetector
from lipsync_fast.provenance import xmp_packet
from lipsync_fast.train.data import LOOKED_AT, Crops
from lipsync_fast.train.hearing import Sounds
from lipsync_fast.train.mouths import LIPS, Mouths, opening
from lipsync_fast.train.state import Follows
from lipsync_fast.train.validate import COLUMNS, TILES, Look, sheet_jpeg

SILENT = 12
BATCH = 8
_GREY = 255.0
_BESIDE = 2


class FollowValidation:
    """Held-out frames.

    Args:
        film: the prepared folder.
        crops: of the film.
        mouths: of the film.
        held: numbers of frames that were not learnt from.
        sounds: what is heard at each frame of the film, as an avatar would hear it.
        silence: the block of a sound in which nothing is heard.
        window: in the region.
        net: of the shape that is learnt; its weights are replaced.
    """

    def __init__(
        self,
        film: PreparedAvatar,
        crops: Crops,
        mouths: Mouths,
        held: Sequence[int],
        sounds: Sounds,
        silence: F32,
        window: Rect,
        net: UNet,
    ) -> None:
        self._film = film
        self._crops, self._mouths, self._window = crops, mouths, window
        self._sounds, self._silence = sounds, silence
        self._net = net.eval()
        there = [i for i in held if np.isfinite(mouths.opening[i])]
        count = min(LOOKED_AT, len(there))
        self._held = [there[int(p)] for p in np.linspace(0, len(there) - 1, count)]
        self._packet = xmp_packet(film.manifest.synthetic)
        still = mouths.shut if len(mouths.shut) else mouths.usable
        self._shown = [int(still[(k * 7) % len(still)]) for k in range(len(self._held))]

    @torch.no_grad()
    def look(self, weights: dict[str, Tensor], device: torch.device) -> Look:
        """Run the network as it would run in an avatar."""
        self._net.load_state_dict(weights)
        self._net.to(device)
        blocks = [self._sounds.block(i) for i in self._held]
        spoken = self._made(self._shown, blocks, device)
        silent = self._made(self._shown[:SILENT], [self._silence] * SILENT, device)
        gaps, quiet = self._gaps(self._shown, spoken), self._gaps(self._shown, silent)
        wanted = self._mouths.opening[self._held]
        seen = np.isfinite(gaps)
        film = [self._crops.crop(i) for i in self._held]
        follows = Follows(
            r=correlation(gaps[seen], wanted[seen]),
            shut=float(np.mean(np.nan_to_num(quiet, nan=1.0) <= self._mouths.shut_limit)),
            sharpness=self._sharpness(spoken) / max(1e-6, self._sharpness(film)),
            seam=float(np.mean([seam(c, self._window) for c in spoken])),
        )
        errors = [
            np.abs(made.astype(np.float32) - own)[self._inner()].mean()
            for made, own in zip(spoken, film, strict=True)
        ]
        chosen = np.linspace(0, len(spoken) - 1, min(TILES, len(spoken))).astype(int)
        tiles = [np.concatenate([film[k], spoken[k]], 1) for k in chosen]
        captions = [
            f"frame {self._held[k]}: film | made; open {wanted[k]:.2f} | {gaps[k]:.2f}"
            for k in chosen
        ]
        sheet = sheet_jpeg(contact_sheet(tiles, captions, columns=COLUMNS), self._packet)
        loss = float(np.mean(errors))
        return Look(loss, loss, sheet, follows)

    def _made(
        self, frames: Sequence[int], blocks: Sequence[F32], device: torch.device
    ) -> list[NDArray[np.uint8]]:
        """Crops with what the network makes of them."""
        out = []
        for first in range(0, min(len(frames), len(blocks)), BATCH):
            crops = [self._crops.crop(i) for i in frames[first : first + BATCH]]
            audio = np.stack(blocks[first : first + BATCH])[: len(crops)]
            out += with_mouths(self._net, crops, audio, self._window, device)
        return out

    def _gaps(self, frames: Sequence[int], crops: list[NDArray[np.uint8]]) -> NDArray[np.float64]:
        """The lips' opening in crops, laid into their frames; NaN where no face is found."""
        detector = MeshDetector()
        points = []
        for index, crop in zip(frames, crops, strict=False):
            picture, rect = self._film.picture(index).copy(), self._film.rect(index)
            inside = _native.resize_cubic(crop, rect.height, rect.width)
            picture[rect.slices] = inside
            detector.follow(self._film.landmarks[index][:POINTS])
            points.append(detector.detect([picture], 1)[0])
        return opening(np.stack(points)) if points else np.zeros(0)

    def _inner(self) -> tuple[slice, slice]:
        box = self._window
        return (
            slice(box.y + REGION_BORDER, box.y + REGION_BORDER + box.height),
            slice(box.x + REGION_BORDER, box.x + REGION_BORDER + box.width),
        )

    def _sharpness(self, crops: Sequence[NDArray[np.uint8]]) -> float:
        """Mean variance of the Laplacian around the lips."""
        lips = self._mouths.points[self._mouths.usable][:, LIPS]
        left, top = (int(v) + REGION_BORDER for v in np.quantile(lips.min(1), 0.1, 0))
        right, bottom = (int(v) + REGION_BORDER for v in np.quantile(lips.max(1), 0.9, 0))
        return float(np.mean([laplacian(c[top:bottom, left:right]).var() for c in crops]))


@torch.no_grad()
def with_mouths(
    net: UNet,
    crops: Sequence[NDArray[np.uint8]],
    audio: F32,
    window: Rect,
    device: torch.device,
) -> list[NDArray[np.uint8]]:
    """Crops with what a network makes of them, in its window.

    Args:
        net: of the family, for inference.
        crops: B, each C x C x 3 RGB.
        audio: B x 32 x 16 x 16.
        window: in the region.
        device: where the network is.
    """
    images = np.stack([_native.region_input(crop, REGION_BORDER) for crop in crops])
    made = net(torch.from_numpy(images).to(device), torch.from_numpy(audio).to(device))
    return [
        with_window(crop, region, window)
        for crop, region in zip(crops, made.float().cpu().numpy(), strict=True)
    ]


def with_window(crop: NDArray[np.uint8], region: F32, window: Rect) -> NDArray[np.uint8]:
    """A crop with a window of what a network made: C x C x 3 RGB and 3 x R x R BGR in 0..1."""
    out = crop.copy()
    box = window
    made = np.clip(region[::-1, box.y : box.y + box.height, box.x : box.x + box.width], 0, 1)
    top, left = box.y + REGION_BORDER, box.x + REGION_BORDER
    out[top : top + box.height, left : left + box.width] = np.rint(_GREY * made).transpose(1, 2, 0)
    return out


def laplacian(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of the mean of the channels, without the edges."""
    g = picture.mean(2, dtype=np.float32)
    out: NDArray[np.float32] = (
        g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    )
    return out


def seam(crop: NDArray[np.uint8], window: Rect) -> float:
    """The mean step across a window's border, against those two pixels beside it."""
    g = crop.mean(2, dtype=np.float32)
    left, top = window.x + REGION_BORDER, window.y + REGION_BORDER
    right, bottom = left + window.width, top + window.height
    across, beside = [], []
    for line, at in ((g[top:bottom], left), (g[top:bottom], right)):
        across.append(np.abs(line[:, at] - line[:, at - 1]).mean())
        beside += [
            np.abs(line[:, at + k] - line[:, at + k - 1]).mean() for k in (-_BESIDE, _BESIDE)
        ]
    for line, at in ((g[:, left:right], top), (g[:, left:right], bottom)):
        across.append(np.abs(line[at] - line[at - 1]).mean())
        beside += [np.abs(line[at + k] - line[at + k - 1]).mean() for k in (-_BESIDE, _BESIDE)]
    return float(np.mean(across) / (np.mean(beside) + 1e-6))


def correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Correlation; 0 where one of them does not move, or there is nothing to compare."""
    if len(a) < 3 or a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
