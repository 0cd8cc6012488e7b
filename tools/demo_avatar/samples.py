# SPDX-License-Identifier: Apache-2.0
"""What the U-Net is trained on: pairs of an idle frame and a mouth, and the sound that asks for it.

A mouth of dataset.npz is put onto any frame of the idle loop by the loop's exact geometry. It is
paired with sounds in which the audio branch hears that very mouth (listening.py), not with the
sound that was spoken there: what cannot be heard would only blur the picture.
"""

from __future__ import annotations

import os
import pathlib

import cv2
import numpy as np
from controls import EFFECT
from geometry import Geometry
from listening import GapOfControls, Listener, Utterance, Widening, load, utterances
from normless import REGION
from numpy.typing import NDArray
from scipy.spatial import cKDTree

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

BORDER = 4
"""Pixels of the face square around the network's region."""
NEIGHBOURS, NEAR = 16, 0.16
"""A mouth's sounds: the nearest so many, if they are so near (in SCALE's distance)."""
SCALE = np.array([*EFFECT, 3.0], np.float32)
"""How visible each control is, and the lip gap."""
EVERY = 8
"""Frames from one that is listened to on to the next."""
HEARD = "heard.npz"
"""What is heard in them, kept for the next run."""


class Data:
    """Idle loop, canonical mouth pictures, and the audio blocks that go with them.

    Attributes:
        idle: The loop's face squares, F x 264 x 264 x 3 RGB.
        train: Numbers of the mouths that are heard somewhere in the training speech.
        held: Pairs of an audio block of held-out real speech and the mouth nearest to what is
            heard in it.
    """

    def __init__(self, work: pathlib.Path, listener: Listener) -> None:
        self._work = work
        with np.load(work / "loop.npz") as z:
            frames, rects, self.maps = z["frames"], z["rects"], z["maps"]
            self.people, self.walls = z["people"], z["walls"]
        with np.load(work / "dataset.npz") as z:
            self.pictures, controls, validation = z["pictures"], z["controls"], z["validation"]
        self.idle: U8 = np.stack(
            [f[y0:y1, x0:x1] for f, (x0, y0, x1, y1) in zip(frames, rects, strict=True)]
        )
        geometry = Geometry(work)
        self._place = geometry.layout.mouth_in_window
        recorded = load(work, "train")
        gap = GapOfControls(geometry, np.concatenate([known for _, _, known in recorded]))
        mouths = np.column_stack([controls, gap(controls)]) * SCALE
        speech = utterances(recorded, gap)
        self._speech = [u for k, u in enumerate(speech) if u.name.startswith("real") or k % 2]
        widening = self._pair(listener, mouths, validation)
        held = [u for u in load(work, "val") if u[0].startswith("real") and u[0].endswith("-0")]
        self.held = hold(listener, widening, utterances(held, gap), mouths)

    def _pair(self, listener: Listener, mouths: F32, validation: NDArray[np.bool_]) -> Widening:
        """Find each mouth's sounds."""
        told = self._told(listener)
        real = [k for k, u in enumerate(self._speech) if u.name.startswith("real")]
        widening = Widening.of(
            np.concatenate([told[k] for k in real]),
            np.concatenate([self._speech[k].targets[::EVERY] for k in real]),
        )
        spoken = [
            (u, EVERY * i) for u, t in zip(self._speech, told, strict=True) for i in range(len(t))
        ]
        heard = widening(np.concatenate(told)) * SCALE
        distances, numbers = cKDTree(heard).query(mouths, k=NEIGHBOURS)
        self._like: list[list[tuple[Utterance, int]]] = [
            [spoken[j] for j, far in zip(row, away, strict=True) if far < NEAR]
            for row, away in zip(numbers, distances, strict=True)
        ]
        self.train = np.array(
            [k for k, like in enumerate(self._like) if like and not validation[k]]
        )
        print(f"{len(self.train)} of {np.sum(~validation)} mouths are heard", flush=True)
        return widening

    def _told(self, listener: Listener) -> list[F32]:
        """What is heard in the speech; taken from WORK/heard.npz where that is newer than what it
        comes from."""
        kept = self._work / HEARD
        sources = (self._work / "listener.pt", self._work / "speech" / "features" / "index.json")
        names = [u.name for u in self._speech]
        ends = np.cumsum([len(u.targets[::EVERY]) for u in self._speech])
        if kept.exists() and all(s.stat().st_mtime < kept.stat().st_mtime for s in sources):
            with np.load(kept) as z:
                if list(z["names"]) == names and len(z["told"]) == ends[-1]:
                    return np.split(z["told"], ends[:-1])
        told = listener.tell(self._speech, EVERY)
        partial = kept.with_suffix(".part.npz")
        np.savez(partial, told=np.concatenate(told), names=names)
        os.replace(partial, kept)
        return told

    def audio(self, sample: int, rng: np.random.RandomState) -> F32:
        """An audio block in which a sample's mouth is heard."""
        near = self._like[sample]
        utterance, frame = near[rng.randint(len(near))]
        return utterance.block(frame)

    def target(self, sample: int, frame: int) -> U8:
        """The face square (264 x 264 RGB) of an idle frame with a sample's mouth."""
        person = self.people[frame].copy()
        person[self._place] = self.pictures[sample]
        x, y = self.maps[frame]
        moved = cv2.remap(
            person.astype(np.float32), x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE
        )
        moved = np.clip(moved / 255, 0, 1)
        rgb = moved[..., :3] + self.walls[frame].astype(np.float32) * (1 - moved[..., 3:])
        out: U8 = np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
        return out


def hold(
    listener: Listener, widening: Widening, speech: list[Utterance], mouths: F32
) -> list[tuple[F32, int]]:
    """24 audio blocks of held-out speech, each with the number of the mouth that is heard."""
    rng, tree, out = np.random.RandomState(12), cKDTree(mouths), []
    for n in rng.choice(len(speech), 24):
        heard = widening(listener.tell([speech[n]])[0]) * SCALE
        i = rng.randint(len(heard))
        out.append((speech[n].block(i), int(tree.query(heard[i])[1])))
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
