# SPDX-License-Identifier: Apache-2.0
"""Teach the U-Net's audio branch to hear the mouth, before any picture.

    python listening.py WORK [--minutes 15 | --kept]

Needs speech/train_encoder.py's features. A linear layer on the branch's mean output tells the
eight controls and the gap between the lips. Writes WORK/listener.pt; a run that was interrupted
begins anew. ``--kept`` leaves the branch of WORK/unet-start.pth (restore.py) as it is, and fits
the linear layer alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import pathlib
import time
from dataclasses import dataclass

import numpy as np
import torch
from averaging import average_in
from geometry import Geometry, opening_px
from normless import WIDTH, new_network
from numpy.typing import NDArray
from precision import autocast
from torch import Tensor, nn

F32 = NDArray[np.float32]
BEFORE, AFTER = 14, 2
"""Audio features before a frame, and from it on, in its block."""
RATE, BATCH = 1.5e-3, 96
REAL_SHARE = 0.45
"""Part of a batch that is real speech."""
WEIGHTS = (3.0, 3.0, 1.0, 1.0, 1.0, 1.5, 1.0, 0.7, 4.0)
"""How much an error of each control counts, and of the gap."""
GAP_UNIT = 8.0
"""Pixels of lip gap that count as 1."""
MOMENTUM = 0.997
FITTED, RIDGE = 24_000, 1e-3
"""Blocks by which a layer on a kept branch is fitted, and how much it is held back."""
REPORT_S = 60


@dataclass(frozen=True)
class Utterance:
    """A recording: features padded for ``block``, and controls and gap per frame, T x 9."""

    name: str
    padded: F32
    targets: F32

    def block(self, frame: int) -> F32:
        """The 32 x 16 x 16 audio block of a frame."""
        return self.padded[frame : frame + BEFORE + AFTER].reshape(32, 16, 16)

    def blocks(self) -> F32:
        """The blocks of all frames, T x 32 x 16 x 16."""
        return np.stack([self.block(i) for i in range(len(self.targets))])


class GapOfControls:
    """``geometry.opening_px`` by a small network fitted to it, a thousand times faster."""

    def __init__(self, geometry: Geometry, controls: F32) -> None:
        rng = np.random.RandomState(0)
        known = controls[rng.choice(len(controls), 4000, replace=False)]
        gaps = torch.from_numpy(opening_px(geometry, known) / GAP_UNIT)
        inputs = torch.from_numpy(known)
        self.net = nn.Sequential(
            nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
        )
        optimiser = torch.optim.Adam(self.net.parameters(), 3e-3)
        for step in range(1500):
            for group in optimiser.param_groups:
                group["lr"] = 3e-3 * (1 - step / 1500)
            some = torch.from_numpy(rng.randint(0, 3600, 512))
            raw = self.net(inputs[some])[:, 0]
            below = raw.clamp(max=0) ** 2 * (gaps[some] > 0)  # keeps ReLU's dead side out of reach
            loss = ((torch.relu(raw) - gaps[some]) ** 2).mean() + 0.1 * below.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        worst = np.abs(self(known[3600:]) - gaps[3600:].numpy()).mean() * GAP_UNIT
        print(f"gap of controls within {worst:.3f} px on average", flush=True)

    @torch.no_grad()
    def __call__(self, controls: F32) -> F32:
        """N x 8 controls to N gaps in GAP_UNIT."""
        out: F32 = torch.relu(self.net(torch.from_numpy(controls))[:, 0]).numpy()
        return out


def load(work: pathlib.Path, split: str) -> list[tuple[str, F32, F32]]:
    """Name, features (T x 512) and controls (T x 8) of a split's recordings and their copies."""
    folder, out = work / "speech" / "features", []
    for entry in json.loads((folder / "index.json").read_text()):
        if entry["split"] == split:
            with np.load(folder / f"{entry['name']}.npz") as z:
                out.append((entry["name"], z["features"].astype(np.float32), z["controls"]))
    return out


def padded(features: F32, frames: int) -> F32:
    """Features with the rows before and after that blocks at the ends see."""
    before = np.zeros((BEFORE, features.shape[1]), np.float32)
    after = np.zeros((max(0, frames - len(features)) + AFTER, features.shape[1]), np.float32)
    return np.concatenate([before, features[:1], features, features[-1:], after])


def utterances(speech: list[tuple[str, F32, F32]], gap: GapOfControls) -> list[Utterance]:
    """Recordings ready to be listened to."""
    return [
        Utterance(name, padded(features, len(controls)), np.column_stack([controls, gap(controls)]))
        for name, features, controls in speech
    ]


class Listener:
    """The audio branch and the linear layer on it, with their running averages."""

    def __init__(self) -> None:
        torch.manual_seed(4)
        self.net = nn.ModuleDict(
            {"branch": new_network().audio_model, "head": nn.Linear(16 * WIDTH, 9)}
        )
        self.average = {k: v.clone() for k, v in self.net.state_dict().items()}

    def train(self, speech: list[Utterance], held: list[Utterance], minutes: float) -> None:
        """Learn for the wall-clock time."""
        real = [u for u in speech if u.name.startswith("real")]
        rng, weights = np.random.RandomState(5), torch.tensor(WEIGHTS)
        optimiser = torch.optim.AdamW(self.net.parameters(), RATE, weight_decay=1e-2)
        begun = reported = time.time()
        step, part, losses = 0, 0.0, list[float]()
        while part < 1:
            part = (time.time() - begun) / (60 * minutes)
            fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, part)))
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1, (step + 1) / 50) * fall
            blocks, targets = pick(real, speech, rng)
            noise = 1 + 0.05 * torch.randn(BATCH, 1, 1, 1)
            blocks = blocks * noise + 0.03 * blocks.std() * torch.randn_like(blocks)
            mean = nn.functional.dropout(self._mean(self.net["branch"], blocks), 0.1)
            loss = ((self.net["head"](mean) - targets) ** 2 * weights).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimiser.step()
            step += 1
            losses.append(loss.item())
            average_in(self.average, self.net, min(MOMENTUM, (step + 1) / (step + 20)))
            if time.time() - reported > REPORT_S or part >= 1:
                found = " ".join(f"{r:.3f}" for r in self.correlations(held))
                print(f"step {step} loss {np.mean(losses):.4f} held out {found}", flush=True)
                reported, losses = time.time(), []

    @torch.no_grad()
    def fit(self, branch: dict[str, Tensor], speech: list[Utterance]) -> None:
        """Take over a trained branch; the layer on it becomes the ridge regression that tells most.

        Real speech counts as much as in ``train``.
        """
        self.net["branch"].load_state_dict(branch)
        real = [u for u in speech if u.name.startswith("real")]
        rng, heard, wanted = np.random.RandomState(5), list[Tensor](), list[Tensor]()
        for _ in range(FITTED // BATCH):
            blocks, targets = pick(real, speech, rng)
            heard.append(self._mean(self.net["branch"], blocks))
            wanted.append(targets)
        x, y = torch.cat(heard).double(), torch.cat(wanted).double()
        mean, level = x.mean(0), y.mean(0)
        x, y = x - mean, y - level
        ridge = RIDGE * len(x) * x.var(0).mean() * torch.eye(x.shape[1])
        weight = torch.linalg.solve(x.T @ x + ridge, x.T @ y).T
        self.net["head"].weight.copy_(weight)
        self.net["head"].bias.copy_(level - weight @ mean)
        self.average = {k: v.clone() for k, v in self.net.state_dict().items()}

    @staticmethod
    def _mean(branch: nn.Module, blocks: Tensor) -> Tensor:
        """What a branch makes of blocks on average over its places, B x 16 WIDTH."""
        with autocast():
            heard: Tensor = branch(blocks.to(memory_format=torch.channels_last))
        return heard.float().mean((2, 3))

    @torch.no_grad()
    def tell(self, speech: list[Utterance], every: int = 1) -> list[F32]:
        """Controls and gap of every so many frames, T x 9 each, by the averaged weights."""
        net = copy.deepcopy(self.net)
        net.load_state_dict(self.average)
        net.eval()
        out = []
        for u in speech:
            parts = torch.from_numpy(u.blocks()[::every]).split(BATCH // 3)
            told = [net["head"](self._mean(net["branch"], part)) for part in parts]
            out.append(torch.cat(told).numpy())
        return out

    def correlations(self, held: list[Utterance]) -> list[float]:
        """Pearson's r of each control and of the gap."""
        told = np.concatenate(self.tell(held))
        true = np.concatenate([u.targets for u in held])
        return [float(np.corrcoef(told[:, k], true[:, k])[0, 1]) for k in range(9)]

    def branch(self) -> dict[str, Tensor]:
        """The averaged weights of the audio branch."""
        start = "branch."
        return {k[len(start) :]: v for k, v in self.average.items() if k.startswith(start)}

    def save(self, path: pathlib.Path) -> None:
        """The averaged weights, appearing whole."""
        partial = path.with_suffix(".part")
        torch.save(self.average, partial)
        os.replace(partial, path)

    @classmethod
    def restored(cls, path: pathlib.Path) -> Listener:
        """A listener with the weights of ``save``."""
        out = cls()
        out.average = torch.load(path, weights_only=True)
        return out


def pick(
    real: list[Utterance], speech: list[Utterance], rng: np.random.RandomState
) -> tuple[Tensor, Tensor]:
    """Blocks (BATCH x 32 x 16 x 16) and targets (BATCH x 9) of random frames."""
    blocks, targets = [], []
    for _ in range(BATCH):
        some = real if rng.rand() < REAL_SHARE else speech
        u = some[rng.randint(len(some))]
        i = rng.randint(len(u.targets))
        blocks.append(u.block(i))
        targets.append(u.targets[i])
    return torch.from_numpy(np.stack(blocks)), torch.from_numpy(np.stack(targets))


@dataclass(frozen=True)
class Widening:
    """Gives what is heard the mean and the spread that the real speech itself has, each 9 numbers.

    The mean of what a sound can stand for swings less than the mouth does.
    """

    heard_mean: F32
    true_mean: F32
    gain: F32

    @classmethod
    def of(cls, heard: F32, true: F32) -> Widening:
        """From N x 9 heard and true numbers of the same frames."""
        return cls(heard.mean(axis=0), true.mean(axis=0), true.std(axis=0) / heard.std(axis=0))

    def __call__(self, heard: F32) -> F32:
        """N x 9 to N x 9, none below 0."""
        out: F32 = np.clip(self.true_mean + (heard - self.heard_mean) * self.gain, 0, None)
        return out


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument(
        "--kept", action="store_true", help="leave unet-start.pth's branch as it is"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, held = load(args.work, "train"), load(args.work, "val")
    gap = GapOfControls(Geometry(args.work), np.concatenate([c for _, _, c in train]))
    listener = Listener()
    known = [u for u in held if u[0].startswith("real") and u[0].endswith("-0")]
    speech, known_speech = utterances(train, gap), utterances(known, gap)
    if args.kept:
        start = torch.load(args.work / "unet-start.pth", weights_only=True)
        part = "audio_model."
        branch = {k[len(part) :]: v for k, v in start.items() if k.startswith(part)}
        listener.fit(branch, speech)
        print("held out", " ".join(f"{r:.3f}" for r in listener.correlations(known_speech)))
    else:
        listener.train(speech, known_speech, args.minutes)
    listener.save(args.work / "listener.pt")


if __name__ == "__main__":
    main()
