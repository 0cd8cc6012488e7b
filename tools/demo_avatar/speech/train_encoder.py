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
import time

import numpy as np
import torch
from data import Utterance, augmented, feature_windows, load, mel
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from lipsync_fast.models.audio_encoder import AudioEncoder

AHEAD = 5
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


def batch(some: list[Utterance], rng: np.random.RandomState, each: int) -> tuple[torch.Tensor, torch.Tensor]:
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
            windows = torch.from_numpy(feature_windows(mel(u.pcm.astype(np.float32) / 32768)))[:, None]
            predicted.append(model(windows)[:, 16:24].numpy())
            true.append(targets(u.controls, len(windows))[:, 16:24])
    p, t = np.concatenate(predicted), np.concatenate(true)
    model.train()
    return " ".join(f"{np.corrcoef(p[:, k], t[:, k])[0, 1]:.3f}" for k in range(8))


def train(work: pathlib.Path, minutes: float) -> None:
    """Train for a wall-clock time, saving every minute."""
    state_file = work / "speech" / "encoder-state.pt"
    model = Model().to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.02  # a batch holds few voices
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
    spent = 0.0
    step = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)  # our own file
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        spent, step = state["spent"], state["step"]
    data = load(work)
    real = [u for u in data if u.split == "train" and u.origin == "real"]
    made = [u for u in data if u.split == "train" and u.origin == "synthetic"]
    held = [u for u in data if u.split == "val" and u.origin == "real"]
    rng = np.random.RandomState(17 + step)
    last = saved = time.time()
    losses: list[float] = []
    while spent < minutes * 60:
        lr = 2e-3 * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * spent / (minutes * 60))))
        for group in optimiser.param_groups:
            group["lr"] = float(lr)
        pick = [real[rng.randint(len(real))] if rng.rand() < 0.4 else made[rng.randint(len(made))] for _ in range(12)]
        x, y = batch(pick, rng, 16)
        with torch.autocast("cpu", torch.bfloat16):
            p = model(x.to(memory_format=torch.channels_last))
        loss = (functional.smooth_l1_loss(p.float(), y, reduction="none", beta=0.2) * WEIGHTS).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        step += 1
        now = time.time()
        spent, last = spent + now - last, now
        if now - saved > 60 or spent >= minutes * 60:
            saved = now
            print(f"{spent:5.0f} s step {step} loss {np.mean(losses):.4f} val {validate(model, held)}", flush=True)
            losses = []
            partial = state_file.with_suffix(".part")
            torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "spent": spent, "step": step}, partial)
            os.replace(partial, state_file)
            last = time.time()
    (work / "out").mkdir(exist_ok=True)
    torch.save(model.encoder.state_dict(), work / "out" / "audio_encoder.pth")


def export(work: pathlib.Path) -> None:
    """Features of every utterance, and of changed copies of those for training."""
    encoder = AudioEncoder().eval()
    encoder.load_state_dict(torch.load(work / "out" / "audio_encoder.pth", weights_only=True))
    folder = work / "speech" / "features"
    folder.mkdir(exist_ok=True)
    rng, index = np.random.RandomState(23), []
    for u in load(work):
        copies = 0 if u.split != "train" else 4 if u.origin == "real" else 1
        for k in range(1 + copies):
            pcm, controls = (u.pcm.astype(np.float32) / 32768, u.controls) if k == 0 else augmented(u, rng)
            windows = torch.from_numpy(feature_windows(mel(pcm)))[:, None]
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                features = encoder(windows.to(memory_format=torch.channels_last)).float().numpy()
            name = f"{u.name}-{k}"
            np.savez(folder / f"{name}.npz", features=features.astype(np.float16), controls=controls)
            index.append({"name": name, "split": u.split, "origin": u.origin, "frames": len(controls)})
    (folder / "index.json").write_text(json.dumps(index))
    print(f"{len(index)} utterances, {sum(e['frames'] for e in index)} frames", flush=True)


def main() -> None:
    """Train, then export the features."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    train(args.work, args.minutes)
    export(args.work)


if __name__ == "__main__":
    main()
