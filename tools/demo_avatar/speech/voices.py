# SPDX-License-Identifier: Apache-2.0
"""The corpus of many voices in memory: sound, and what the mouth does at any moment of it.

Its parts may be kept apart by their licence: readers (CC BY 4.0) and synthetic voices by
themselves, or with corpus.py's one speaker, whose recordings are CC BY-SA (``share_alike``).
"""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from phones import (
    FPS,
    STEPS,
    TARGETS,
    Phone,
    controls_of,
    curves_of,
    split_diphthongs,
    voiced_gate,
)

F32 = NDArray[np.float32]
RATE = 16_000
CLASSES = tuple(TARGETS)
"""What is told apart beside the controls: phones, diphthongs by their halves, and silence."""


@dataclass(frozen=True)
class Voice:
    """One recording of one speaker.

    Attributes:
        split: train, val or test.
        origin: reader, synthetic or real (corpus.py's one speaker).
        pcm: int16 at 16 kHz.
        phones: In order, in seconds.
        curve: Controls STEPS times a second, T x 8, 0..1.
        classes: Number of the phone in CLASSES, STEPS times a second.
        believed: 1 where the phones' times can be learned from, 0 elsewhere, STEPS times a second.
    """

    name: str
    split: str
    origin: str
    speaker: str
    pcm: NDArray[np.int16]
    phones: list[Phone]
    curve: F32
    classes: NDArray[np.int64]
    believed: F32

    @property
    def sound(self) -> F32:
        """The sound, -1..1."""
        return self.pcm.astype(np.float32) / 32768

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.pcm) / RATE

    def at(self, seconds: NDArray[np.float64]) -> tuple[F32, NDArray[np.int64], F32]:
        """Controls (N x 8), classes and whether to believe them (0 outside) at moments."""
        steps = np.clip(seconds * STEPS - 0.5, 0, len(self.curve) - 1.001)
        left = steps.astype(int)
        part = (steps - left)[:, None].astype(np.float32)
        controls = self.curve[left] * (1 - part) + self.curve[left + 1] * part
        inside = (seconds >= 0) & (seconds < self.seconds)
        nearest = np.round(steps).astype(int)
        return controls, self.classes[nearest], self.believed[nearest] * inside

    def frames(self) -> F32:
        """Controls at the centres of the frames, as ``controls_of`` gives them."""
        controls = controls_of(self.phones, self.seconds)
        controls *= voiced_gate(self.sound, len(controls))[:, None]
        return controls


def voice_of(path: pathlib.Path, split: str, origin: str, speaker: str) -> Voice:
    """Read one recording."""
    with np.load(path) as z:
        pcm, names, times = z["pcm"], z["phone_names"], z["phone_times"]
        valid = z["valid"] if "valid" in z.files else None
    phones = [Phone(str(n), float(s), float(e)) for n, (s, e) in zip(names, times, strict=True)]
    seconds = len(pcm) / RATE
    curve = np.clip(curves_of(phones, seconds), 0, 1).astype(np.float32)
    moments = (np.arange(len(curve)) + 0.5) / STEPS
    gate = voiced_gate(pcm.astype(np.float32) / 32768, int(np.ceil(seconds * FPS)))
    curve *= np.interp(moments, (np.arange(len(gate)) + 0.5) / FPS, gate)[:, None]
    classes = np.full(len(curve), CLASSES.index("SIL"))
    for phone in split_diphthongs(phones):
        classes[(moments >= phone.start) & (moments < phone.end)] = CLASSES.index(phone.name)
    believed = np.ones(len(curve), np.float32)
    if valid is not None:
        believed = valid[np.minimum((moments * FPS).astype(int), len(valid) - 1)].astype(np.float32)
    return Voice(path.stem, split, origin, speaker, pcm, phones, curve, classes, believed)


def load(work: pathlib.Path, share_alike: bool) -> list[Voice]:
    """The whole corpus, with or without the recordings that are CC BY-SA."""
    folder, out = work / "speech" / "voices", []
    for index in ("index.json", "synthetic.json"):
        for entry in json.loads((folder / index).read_text()):
            about = entry["split"], entry["origin"], str(entry["speaker"])
            out.append(voice_of(folder / f"{entry['name']}.npz", *about))
    folder = work / "speech" / "corpus"
    for entry in json.loads((folder / "index.json").read_text()) if share_alike else ():
        if entry["origin"] == "real":
            path = folder / f"{entry['name']}.npz"
            out.append(voice_of(path, entry["split"], "real", "allison"))
    return out
