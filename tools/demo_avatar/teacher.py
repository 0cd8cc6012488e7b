# SPDX-License-Identifier: Apache-2.0
"""A network that hears the mouth in whole recordings, to teach the avatar's own networks.

    python teacher.py WORK [--minutes 8]

It looks from mel rows straight at controls and gap, some 0.4 s to either side, and learns in
minutes what the avatar's audio encoder and branch, ten times as costly and bound to their blocks,
would need hours for. What it tells of a sound (WORK/teacher.pt) holds less chance than what the
aligned phones ask for; tune_hearing.py learns from both. No part of it is in the avatar.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import sys
import time

import numpy as np
import torch
from averaging import average_in
from geometry import Geometry
from listening import WEIGHTS, GapOfControls
from numpy.typing import NDArray
from precision import autocast
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "speech"))
from data import Utterance, augmented, load, mel

F32 = NDArray[np.float32]
CHANNELS = 320
RATE, REAL_SHARE = 1.5e-3, 0.6
TOGETHER, FRAMES = 24, 60
"""Recordings in a step, and frames of each."""
AROUND = 30
"""Mel rows before and after the frames that the network also gets."""
SILENCE = -4.0
COPIES = {"real": 16, "synthetic": 2}
"""Changed copies of each recording, beside itself."""
MOMENTUM = 0.995
REPORT_S = 60


class Residual(nn.Module):
    """Norm, a convolution in time, and one that mixes channels, beside the input."""

    def __init__(self, spacing: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.along = nn.Conv2d(
            CHANNELS, CHANNELS, (1, 5), dilation=(1, spacing), padding=(0, 2 * spacing)
        )
        self.mix = nn.Conv2d(CHANNELS, CHANNELS, 1)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``B x C x 1 x T`` to the same."""
        y = torch.relu(self.along(self.norm(x)))
        out: Tensor = x + self.mix(functional.dropout(y, 0.2, self.training))
        return out


class Teacher(nn.Module):
    """Mel rows to controls and gap of frames."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(80, CHANNELS, 6, stride=2, padding=2)
        self.blocks = nn.Sequential(*(Residual(spacing) for spacing in (1, 1, 2, 1, 2)))
        self.last = nn.Conv1d(CHANNELS, 9, 1)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """``B x 80 x rows``, AROUND of them at either end, to ``B x frames x 9``."""
        y = self.first(x)[:, :, None].contiguous(memory_format=torch.channels_last)
        y = self.last(torch.relu(self.blocks(y))[:, :, 0])[..., AROUND // 2 : -(AROUND // 2)]
        at = (3.2 * torch.arange(frames) + 1.1) / 2  # of frames' centres, in steps of two rows
        at = at.clamp(max=y.shape[2] - 1.001)
        left, part = at.long(), at - at.floor()
        out: Tensor = y[..., left].float() * (1 - part) + y[..., left + 1].float() * part
        return out.transpose(1, 2)

    @torch.no_grad()
    def tell(self, rows: F32, frames: int) -> F32:
        """Controls and gap of a whole recording's frames, frames x 9, from its mel rows."""
        ends = ((AROUND, AROUND + 4), (0, 0))
        x = np.pad(rows, ends, constant_values=SILENCE).T[None]
        with autocast():
            out: F32 = self(torch.from_numpy(np.ascontiguousarray(x)), frames)[0].numpy()
        return out


Example = tuple[F32, F32]
"""Mel rows (as half precision) and targets, frames x 9."""


def cut(example: Example, rng: np.random.RandomState) -> tuple[F32, F32, F32]:
    """Rows (80 x N) of FRAMES frames and what is around, their targets, and 1 where there are any.

    Half of them lack a band of frequencies, all have another loudness.
    """
    rows, targets = example
    count = len(targets)
    first = rng.randint(max(1, count - FRAMES + 1))
    some = targets[first : first + FRAMES]
    wanted, valid = np.zeros((FRAMES, 9), np.float32), np.zeros(FRAMES, np.float32)
    wanted[: len(some)], valid[: len(some)] = some, 1
    x = np.full((FRAMES * 16 // 5 + 2 * AROUND, 80), SILENCE, np.float32)
    top = round(3.2 * first) - AROUND
    low, high = max(0, top), min(len(rows), top + len(x))
    x[low - top : high - top] = rows[low:high]
    if rng.rand() < 0.5:
        width = rng.randint(4, 14)
        band = rng.randint(80 - width)
        x[:, band : band + width] = x[:, band : band + width].mean()
    return x.T + np.float32(0.15 * rng.randn()), wanted, valid


class Trainer:
    """The teacher, its average, and the speech."""

    def __init__(self, work: pathlib.Path, minutes: float) -> None:
        self.work, self.seconds = work, 60 * minutes
        data = load(work)
        train = [u for u in data if u.split == "train"]
        self.gap = GapOfControls(Geometry(work), np.concatenate([u.controls for u in train]))
        self.rng = np.random.RandomState(0)
        self.real = self._examples([u for u in train if u.origin == "real"])
        self.made = self._examples([u for u in train if u.origin == "synthetic"])
        self.held = [u for u in data if (u.split, u.origin) == ("val", "real")]
        self.net = Teacher()
        self.average = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.optimiser = torch.optim.AdamW(self.net.parameters(), RATE, weight_decay=0.02)
        self.step = 0

    def _examples(self, speech: list[Utterance]) -> tuple[list[Example], NDArray[np.float64]]:
        """Recordings with their changed copies, and how often to take each: by its length."""
        out = []
        for u in speech:
            sounds = [(u.pcm.astype(np.float32) / 32768, u.controls)]
            sounds += [augmented(u, self.rng) for _ in range(COPIES[u.origin])]
            for pcm, controls in sounds:
                targets = np.column_stack([controls, self.gap(controls)])
                out.append((mel(pcm).astype(np.float16), targets))
        lengths = np.array([len(targets) for _, targets in out], np.float64)
        return out, lengths / lengths.sum()

    def learn(self) -> float:
        """One step; returns the loss."""
        xs, ys, ms = [], [], []
        for _ in range(TOGETHER):
            some, often = self.real if self.rng.rand() < REAL_SHARE else self.made
            x, y, m = cut(some[self.rng.choice(len(some), p=often)], self.rng)
            xs.append(x)
            ys.append(y)
            ms.append(m)
        valid = torch.from_numpy(np.stack(ms))
        with autocast():
            told = self.net(torch.from_numpy(np.stack(xs)), FRAMES)
        error = (told - torch.from_numpy(np.stack(ys))) ** 2 * torch.tensor(WEIGHTS)
        loss = (error.mean(2) * valid).sum() / valid.sum()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(MOMENTUM, (self.step + 1) / (self.step + 20))
        average_in(self.average, self.net, keep)
        return loss.item()

    def held_out(self) -> str:
        """Pearson's r of each control and of the gap on held-out speech, by averaged weights."""
        net = Teacher().eval()
        net.load_state_dict(self.average)
        sounds = [mel(u.pcm.astype(np.float32) / 32768) for u in self.held]
        told = np.concatenate(
            [net.tell(x, len(u.controls)) for x, u in zip(sounds, self.held, strict=True)]
        )
        controls = np.concatenate([u.controls for u in self.held])
        true = np.column_stack([controls, self.gap(controls)])
        return " ".join(f"{np.corrcoef(told[:, k], true[:, k])[0, 1]:.3f}" for k in range(9))

    def run(self) -> None:
        """Train for the wall-clock time, then save the averaged weights."""
        losses: list[float] = []
        begun = reported = time.time()
        part = 0.0
        while part < 1:
            part = (time.time() - begun) / self.seconds
            fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, part)))
            for group in self.optimiser.param_groups:
                group["lr"] = RATE * min(1, (self.step + 1) / 50) * fall
            losses.append(self.learn())
            if time.time() - reported > REPORT_S or part >= 1:
                found = f"loss {np.mean(losses):.4f} held out {self.held_out()}"
                print(f"step {self.step} {found}", flush=True)
                losses, reported = [], time.time()
        partial = self.work / "teacher.part"
        torch.save(self.average, partial)
        os.replace(partial, self.work / "teacher.pt")


def restored(work: pathlib.Path) -> Teacher:
    """The trained teacher."""
    net = Teacher().eval()
    net.load_state_dict(torch.load(work / "teacher.pt", weights_only=True))
    return net


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    Trainer(args.work, args.minutes).run()


if __name__ == "__main__":
    main()
