# SPDX-License-Identifier: Apache-2.0
"""Teach the audio encoder once more, through the finished U-Net's audio branch.

    python tune_encoder.py WORK [--minutes 30]

train_encoder.py teaches each feature to tell the mouth from 0.2 s of sound; what the branch makes
of sixteen of them it never sees. Here both listen together, and only the encoder learns: the
branch, and all that draws pictures from it, stay as they are. A linear layer, fitted to what the
branch says before, tells controls and gap from it, as in listening.py.

Needs WORK/out/audio_encoder.pth, and WORK/out/unet.pth or restore.py's WORK/unet-start.pth. Writes
WORK/out/audio_encoder-tuned.pth, which pack.py prefers. Resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import pathlib
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
from geometry import Geometry
from listening import AFTER, BEFORE, WEIGHTS, GapOfControls
from normless import REGION, new_network
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "speech"))
from data import Utterance, augmented, feature_windows, load, mel

from lipsync_fast.models.audio_encoder import AudioEncoder
from lipsync_fast.models.checkpoints import load_unet

F32 = NDArray[np.float32]
RATE = 4e-4
REAL_SHARE = 0.6
TOGETHER, LONGEST = 6, 48
"""Recordings in a step, and frames of each."""
NEAR = 0.02
"""How much it costs to change what the branch says otherwise than the linear layer asks."""
RIDGE = 1.0
MOMENTUM = 0.995
SAVE_S = 60


@dataclass(frozen=True)
class Stretch:
    """Some frames of a recording: the mel windows that they need, and how these lie in blocks.

    Attributes:
        windows: N x 80 x 16.
        rows: The window of each row of the blocks (frames + 15), -1 for a row of zeros.
        targets: Controls and gap, frames x 9.
    """

    windows: F32
    rows: NDArray[np.int64]
    targets: F32

    @classmethod
    def of(cls, pcm: F32, targets: F32, rng: np.random.RandomState | None) -> Stretch:
        """LONGEST frames from a random one on, or without ``rng`` the whole recording."""
        windows = feature_windows(mel(pcm))
        count, first, end = len(windows), 0, len(targets)
        if rng is not None and end > LONGEST:
            first = rng.randint(end - LONGEST)
            end = first + LONGEST
        rows = np.arange(first, end + BEFORE + AFTER - 1) - BEFORE - 1  # see listening.padded
        outside = (rows < -1) | (rows > count)
        rows = np.where(outside, -1, np.clip(rows, 0, count - 1))
        used = np.unique(rows[rows >= 0])
        rows = np.where(rows < 0, -1, np.searchsorted(used, rows))
        return cls(windows[used], rows, targets[first:end])


class Hearing(nn.Module):
    """Encoder and audio branch; the branch does not learn."""

    def __init__(self, encoder: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.encoder, self.branch = encoder.eval(), branch.eval().requires_grad_(False)

    def forward(self, some: list[Stretch]) -> Tensor:
        """The branch's output over all frames of all stretches, averaged over its map, T x 256."""
        windows = torch.from_numpy(np.concatenate([s.windows for s in some]))[:, None]
        with torch.autocast("cpu", torch.bfloat16):
            features = self.encoder(windows.contiguous(memory_format=torch.channels_last)).float()
            blocks, at = [], 0
            for s in some:
                mine = torch.cat([features[at : at + len(s.windows)], features.new_zeros(1, 512)])
                at += len(s.windows)
                rows = mine[torch.from_numpy(np.where(s.rows < 0, len(s.windows), s.rows))]
                frames = rows.unfold(0, BEFORE + AFTER, 1).transpose(1, 2)
                blocks.append(frames.reshape(-1, 32, 16, 16))
            heard = self.branch(torch.cat(blocks).contiguous(memory_format=torch.channels_last))
        out: Tensor = heard.float().mean((2, 3))
        return out


def networks(work: pathlib.Path) -> tuple[AudioEncoder, nn.Module]:
    """The encoder and the U-Net's audio branch as they are."""
    encoder = AudioEncoder()
    state = torch.load(work / "out" / "audio_encoder.pth", weights_only=True)
    encoder.load_state_dict(state)
    if (work / "out" / "unet.pth").exists():
        return encoder, load_unet(work / "out" / "unet.pth", REGION).audio_model
    net = new_network()
    net.load_state_dict(torch.load(work / "unet-start.pth", weights_only=True))
    return encoder, net.audio_model


class Trainer:
    """The networks, the linear layer, and where training stands."""

    def __init__(self, work: pathlib.Path, minutes: float) -> None:
        self.work, self.seconds = work, 60 * minutes
        encoder, branch = networks(work)
        data = load(work)
        controls = np.concatenate([u.controls for u in data if u.split == "train"])
        self.gap = GapOfControls(Geometry(work), controls)
        train = [u for u in data if u.split == "train"]
        self.real = [u for u in train if u.origin == "real"]
        self.made = [u for u in train if u.origin == "synthetic"]
        self.held = [self._whole(u) for u in data if (u.split, u.origin) == ("val", "real")]
        self.before = Hearing(encoder, branch).requires_grad_(False)
        self.net = Hearing(copy.deepcopy(encoder).requires_grad_(True), branch)
        self.head, self.away = self._fit()
        self.average = {k: v.clone() for k, v in self.net.encoder.state_dict().items()}
        self.optimiser = torch.optim.AdamW(self.net.encoder.parameters(), RATE, weight_decay=1e-3)
        self.spent, self.step = 0.0, 0
        self.state_file = work / "speech" / "tuning-state.pt"
        if self.state_file.exists():
            self._resume()
        self.rng = np.random.RandomState(41 + self.step)

    def _whole(self, u: Utterance) -> Stretch:
        return Stretch.of(u.pcm.astype(np.float32) / 32768, self._targets(u.controls), None)

    def _targets(self, controls: F32) -> F32:
        return np.column_stack([controls, self.gap(controls)])

    @torch.no_grad()
    def _fit(self) -> tuple[Tensor, Tensor]:
        """The linear layer (257 x 9), and what projects on all that it does not see (256 x 256)."""
        some = self.real + self.made[:: max(1, len(self.made) // len(self.real))]
        heard, targets = [], []
        for u in some:
            whole = self._whole(u)
            heard.append(with_one(self.before([whole])))
            targets.append(torch.from_numpy(whole.targets))
        x, y = torch.cat(heard).double(), torch.cat(targets).double()
        gram = x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
        head = torch.linalg.solve(gram, x.T @ y).float()
        q, _ = torch.linalg.qr(head[:-1])
        return head, torch.eye(len(head) - 1) - q @ q.T

    def _resume(self) -> None:
        state = torch.load(self.state_file, weights_only=True)
        self.net.encoder.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        self.spent, self.step = state["spent"], state["step"]

    def save(self) -> None:
        """Checkpoint and the averaged encoder, each appearing whole."""
        state = {
            "net": self.net.encoder.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "spent": self.spent,
            "step": self.step,
        }
        tuned = self.work / "out" / "audio_encoder-tuned.pth"
        for path, what in ((self.state_file, state), (tuned, self.average)):
            partial = path.with_suffix(".part")
            torch.save(what, partial)
            os.replace(partial, path)

    def learn(self) -> float:
        """One step on changed copies of TOGETHER recordings; returns the loss."""
        some = []
        for _ in range(TOGETHER):
            speech = self.real if self.rng.rand() < REAL_SHARE else self.made
            pcm, controls = augmented(speech[self.rng.randint(len(speech))], self.rng)
            some.append(Stretch.of(pcm, self._targets(controls), self.rng))
        wanted = torch.from_numpy(np.concatenate([s.targets for s in some]))
        heard = self.net(some)
        with torch.no_grad():
            before = self.before(some)
        told = with_one(heard) @ self.head
        loss = ((told - wanted) ** 2 * torch.tensor(WEIGHTS)).mean()
        strayed = (((heard - before) @ self.away) ** 2).sum(1).mean()
        self.optimiser.zero_grad()
        (loss + NEAR * strayed).backward()
        nn.utils.clip_grad_norm_(self.net.encoder.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(MOMENTUM, self.step / (self.step + 10))
        with torch.no_grad():
            for name, value in self.net.encoder.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - keep)
        return loss.item()

    @torch.no_grad()
    def correlations(self) -> str:
        """Pearson's r of each control and of the gap on held-out speech, by averaged weights."""
        net = Hearing(copy.deepcopy(self.net.encoder), self.net.branch)
        net.encoder.load_state_dict(self.average)
        told = torch.cat([with_one(net([s])) @ self.head for s in self.held]).numpy()
        true = np.concatenate([s.targets for s in self.held])
        return " ".join(f"{np.corrcoef(told[:, k], true[:, k])[0, 1]:.3f}" for k in range(9))

    def run(self) -> None:
        """Train for the wall-clock time; saves and reports every SAVE_S seconds."""
        print(f"before: held out {self.correlations()}", flush=True)
        losses: list[float] = []
        last = saved = time.time()
        while self.spent < self.seconds:
            fall = 0.5 * (1 + math.cos(math.pi * self.spent / self.seconds))
            for group in self.optimiser.param_groups:
                group["lr"] = RATE * min(1, (self.step + 1) / 40) * (0.02 + 0.98 * fall)
            losses.append(self.learn())
            now = time.time()
            self.spent, last = self.spent + now - last, now
            if now - saved > SAVE_S or self.spent >= self.seconds:
                self.save()
                found = f"loss {np.mean(losses):.4f} held out {self.correlations()}"
                print(f"{self.spent:5.0f} s step {self.step} {found}", flush=True)
                losses = []
                last = saved = time.time()


def with_one(x: Tensor) -> Tensor:
    """N x 256 to N x 257: a constant for the linear layer's offset."""
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def main() -> None:
    """Train, resuming where a former run stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(6)
    Trainer(args.work, args.minutes).run()


if __name__ == "__main__":
    main()
