# SPDX-License-Identifier: Apache-2.0
"""Train the audio encoder: mel windows to the mouth controls of the frames they cover.

    python train_encoder.py WORK [--minutes 12]

The 512-vector of feature j must tell, through one linear layer, the eight controls of the frames
j .. j + 4. Real recordings make up 40% of the batches. Resumes from its checkpoint. Writes
WORK/out/audio_encoder.pth and WORK/speech/features/*.npz, which the U-Net is trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import time

import numpy as np
import torch
from data import Utterance, augmented, feature_windows, load, mel
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from precision import autocast

from lipsync_fast.audio.gain import levelled
from lipsync_fast.models.audio_encoder import AudioEncoder

AHEAD = 5
RATE = 2e-3
REAL_SHARE = 0.4
WEIGHTS = torch.tensor([2.0, 2.5, 1.0, 1.0, 1.0, 1.5, 1.0, 0.7]).repeat(AHEAD)


class Model(nn.Module):
    """The encoder and the linear layer that is thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AudioEncoder()
        self.head = nn.Linear(512, 8 * AHEAD)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """B x 1 x 80 x 16 to B x 40."""
        y: torch.Tensor = self.head(functional.dropout(self.encoder(x), 0.1, self.training))
        return y


def targets(controls: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Controls of frames j .. j + 4 for each feature j, count x 40; silence after the end."""
    padded = np.concatenate([controls, np.zeros((count + AHEAD, 8), np.float32)])
    return np.stack([padded[j : j + AHEAD].ravel() for j in range(count)])


def batch(
    some: list[Utterance], rng: np.random.RandomState, each: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows of augmented copies of some utterances, and their targets."""
    xs, ys = [], []
    for u in some:
        pcm, controls = augmented(u, rng)
        if rng.rand() < 0.05:
            pcm, controls = pcm * 0 + rng.randn(len(pcm)).astype(np.float32) * 1e-3, controls * 0
        windows = feature_windows(mel(pcm.astype(np.float32)))
        pick = rng.choice(len(windows), each, replace=len(windows) < each)
        xs.append(windows[pick])
        ys.append(targets(controls, len(windows))[pick])
    return torch.from_numpy(np.concatenate(xs))[:, None], torch.from_numpy(np.concatenate(ys))


def validate(model: Model, data: list[Utterance]) -> str:
    """Correlation of each control (of the frame two ahead of the window's start)."""
    model.eval()
    predicted, true = [], []
    with torch.no_grad():
        for u in data:
            rows = mel(u.pcm.astype(np.float32) / 32768)
            windows = torch.from_numpy(feature_windows(rows))[:, None]
            predicted.append(model(windows)[:, 16:24].numpy())
            true.append(targets(u.controls, len(windows))[:, 16:24])
    p, t = np.concatenate(predicted), np.concatenate(true)
    model.train()
    return " ".join(f"{np.corrcoef(p[:, k], t[:, k])[0, 1]:.3f}" for k in range(8))


class Trainer:
    """The model, its optimiser and where training stands; resumes from its checkpoint."""

    def __init__(self, work: pathlib.Path, minutes: float) -> None:
        self.work, self.seconds = work, minutes * 60
        self.state_file = work / "speech" / "encoder-state.pt"
        self.model = Model().to(memory_format=torch.channels_last)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.02  # a batch holds few voices
        self.optimiser = torch.optim.AdamW(self.model.parameters(), RATE, weight_decay=1e-2)
        self.spent, self.step = 0.0, 0
        if self.state_file.exists():
            state = torch.load(self.state_file, weights_only=False)  # our own file
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.spent, self.step = state["spent"], state["step"]
        data = load(work)
        train = [u for u in data if u.split == "train"]
        self.real = [u for u in train if u.origin == "real"]
        self.made = [u for u in train if u.origin == "synthetic"]
        self.held = [u for u in data if u.split == "val" and u.origin == "real"]
        self.rng = np.random.RandomState(17 + self.step)

    def save(self) -> None:
        """Checkpoint, appearing whole."""
        partial = self.state_file.with_suffix(".part")
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        torch.save({**state, "spent": self.spent, "step": self.step}, partial)
        os.replace(partial, self.state_file)

    def learn(self) -> float:
        """One step on 12 utterances; returns the loss."""
        warm = min(1.0, (self.step + 1) / 100)
        fall = 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * self.spent / self.seconds))
        for group in self.optimiser.param_groups:
            group["lr"] = float(RATE * warm * fall)
        pick = []
        for _ in range(12):
            some = self.real if self.rng.rand() < REAL_SHARE else self.made
            pick.append(some[self.rng.randint(len(some))])
        x, y = batch(pick, self.rng, 16)
        with autocast():
            p = self.model(x.to(memory_format=torch.channels_last))
        error = functional.smooth_l1_loss(p.float(), y, reduction="none", beta=0.2)
        loss = (error * WEIGHTS).mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.step += 1
        return loss.item()

    def run(self) -> None:
        """Train for the wall-clock time, saving every minute, then write the encoder."""
        losses: list[float] = []
        last = saved = time.time()
        while self.spent < self.seconds:
            losses.append(self.learn())
            now = time.time()
            self.spent, last = self.spent + now - last, now
            if now - saved > 60 or self.spent >= self.seconds:
                saved = now
                found = f"loss {np.mean(losses):.4f} val {validate(self.model, self.held)}"
                print(f"{self.spent:5.0f} s step {self.step} {found}", flush=True)
                losses = []
                self.save()
                last = time.time()
        (self.work / "out").mkdir(exist_ok=True)
        torch.save(self.model.encoder.state_dict(), self.work / "out" / "audio_encoder.pth")


def export(work: pathlib.Path, most: int) -> None:
    """Features of every utterance, and of changed copies of those for training: at most so many."""
    encoder = AudioEncoder().eval()
    encoder.load_state_dict(torch.load(work / "out" / "audio_encoder.pth", weights_only=True))
    folder = work / "speech" / "features"
    folder.mkdir(exist_ok=True)
    rng, index = np.random.RandomState(23), []
    for u in load(work):
        copies = 0 if u.split != "train" else min(most, 4 if u.origin == "real" else 1)
        for k in range(1 + copies):
            pcm, controls = u.pcm.astype(np.float32) / 32768, u.controls
            if k:
                pcm, controls = augmented(u, rng)
            heard = levelled(pcm.astype(np.float32))  # as the package hears it
            windows = torch.from_numpy(feature_windows(mel(heard)))[:, None]
            with torch.no_grad(), autocast():
                features = encoder(windows.to(memory_format=torch.channels_last)).float().numpy()
            name = f"{u.name}-{k}"
            half = features.astype(np.float16)
            np.savez(folder / f"{name}.npz", features=half, controls=controls)
            about = {"name": name, "split": u.split, "origin": u.origin}
            index.append({**about, "frames": len(controls)})
    (folder / "index.json").write_text(json.dumps(index))
    print(f"{len(index)} utterances, {sum(e['frames'] for e in index)} frames", flush=True)


def main() -> None:
    """Train, then export the features."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--features-only", action="store_true", help="WORK/out has the encoder")
    parser.add_argument("--copies", type=int, default=4, help="of a real recording, at most")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    if not args.features_only:
        Trainer(args.work, args.minutes).run()
    export(args.work, args.copies)


if __name__ == "__main__":
    main()
