# SPDX-License-Identifier: Apache-2.0
"""What the U-Net is trained on: pairs of an idle frame and a mouth, and the sound that asks for it.

A mouth of dataset.npz is put onto any frame of the idle loop by the loop's exact geometry. Its
sound is its own frame's, or that of any frame of the training speech that asks for nearly the same
mouth.
"""

from __future__ import annotations

import json
import pathlib

import cv2
import numpy as np
from controls import EFFECT
from layout import MOUTH, WINDOW
from normless import REGION
from numpy.typing import NDArray
from scipy.spatial import cKDTree

U8 = NDArray[np.uint8]
F16 = NDArray[np.float16]
F32 = NDArray[np.float32]

BORDER = 4
"""Pixels of the face square around the network's region."""
BEFORE, AFTER = 14, 2
"""Audio features before a frame, and from it on, in its block."""
NEIGHBOURS, NEAR = 24, 0.10
"""Other frames whose mouth is so near (EFFECT's distance) lend their sound."""
OTHER_SOUND = 0.75
"""How often a mouth comes with another frame's sound."""


class Data:
    """Idle loop, canonical mouth pictures, and the audio blocks that go with them.

    Attributes:
        idle: The loop's face squares, F x 264 x 264 x 3 RGB.
        controls: The samples' controls, N x 8.
        validation: Which samples are held out, N.
        utterances: Features (T x 512) and controls (T x 8) of the training speech, changed copies
            too.
        where: Recording and frame of each sample.
        feature_of: Features of the samples' recordings, T x 512, by name.
    """

    def __init__(self, work: pathlib.Path) -> None:
        with np.load(work / "loop.npz") as z:
            frames, rects, self.maps = z["frames"], z["rects"], z["maps"]
            self.people, self.walls = z["people"], z["walls"]
        with np.load(work / "dataset.npz") as z:
            self.pictures, self.controls = z["pictures"], z["controls"]
            names, numbers, self.validation = z["names"], z["frames"], z["validation"]
        folder = work / "speech" / "features"
        self.utterances: list[tuple[F16, F32]] = []
        for entry in json.loads((folder / "index.json").read_text()):
            if entry["split"] == "train":
                with np.load(folder / f"{entry['name']}.npz") as z:
                    self.utterances.append((z["features"], z["controls"]))
        self.feature_of: dict[str, F16] = {
            str(name): np.load(folder / f"{name}-0.npz")["features"] for name in sorted(set(names))
        }
        self.where = [(str(n), int(i)) for n, i in zip(names, numbers, strict=True)]
        self.idle: U8 = np.stack(
            [f[y0:y1, x0:x1] for f, (x0, y0, x1, y1) in zip(frames, rects, strict=True)]
        )
        self._like = self._neighbours()

    def _neighbours(self) -> list[list[tuple[int, int]]]:
        """Per sample, (utterance, frame) of training speech that asks for almost the same mouth."""
        spoken = [(k, i) for k, (_, c) in enumerate(self.utterances) for i in range(0, len(c), 2)]
        table = np.stack([self.utterances[k][1][i] for k, i in spoken])
        scale = np.array(EFFECT, np.float32)
        distances, numbers = cKDTree(table * scale).query(self.controls * scale, k=NEIGHBOURS)
        return [
            [spoken[j] for j, far in zip(row, away, strict=True) if far < NEAR]
            for row, away in zip(numbers, distances, strict=True)
        ]

    def block(self, features: F16, i: int) -> F32:
        """The 32 x 16 x 16 audio block of frame i; zeros beyond the recording's ends."""
        padded = np.concatenate([features[:1], features, features[-1:]])
        out = np.zeros((BEFORE + AFTER, 512), np.float32)
        low, high = max(0, i - BEFORE), min(len(padded), i + AFTER)
        if high > low:
            out[low - (i - BEFORE) : high - (i - BEFORE)] = padded[low:high]
        return out.reshape(32, 16, 16)

    def own_audio(self, sample: int) -> F32:
        """The audio block of a sample's own frame."""
        name, i = self.where[sample]
        return self.block(self.feature_of[name], i)

    def audio(self, sample: int, rng: np.random.RandomState) -> F32:
        """An audio block for a sample: its own frame's, or that of a frame like it."""
        near = self._like[sample]
        if near and rng.rand() < OTHER_SOUND:
            k, i = near[rng.randint(len(near))]
            return self.block(self.utterances[k][0], i)
        return self.own_audio(sample)

    def target(self, sample: int, frame: int) -> U8:
        """The face square (264 x 264 RGB) of an idle frame with a sample's mouth."""
        person = self.people[frame].copy()
        x0, y0 = MOUTH[0] - WINDOW[0], MOUTH[1] - WINDOW[1]
        height, width = self.pictures.shape[1:3]
        person[y0 : y0 + height, x0 : x0 + width] = self.pictures[sample]
        x, y = self.maps[frame]
        moved = cv2.remap(
            person.astype(np.float32), x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE
        )
        moved = np.clip(moved / 255, 0, 1)
        rgb = moved[..., :3] + self.walls[frame].astype(np.float32) * (1 - moved[..., 3:])
        out: U8 = np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
        return out


def planes(square: U8) -> F32:
    """A face square (RGB) to the region's 3 x 256 x 256 BGR in 0..1."""
    inner = square[BORDER:-BORDER, BORDER:-BORDER, ::-1]
    return np.ascontiguousarray(inner.transpose(2, 0, 1)).astype(np.float32) / 255


def image_input(square: U8) -> F32:
    """The six input channels of an idle face square: the picture, and with the face masked."""
    region = planes(square)
    masked = region.copy()
    masked[:, 5 : REGION - 10, 5 : REGION - 5] = 0
    return np.concatenate([region, masked])
