# SPDX-License-Identifier: Apache-2.0
"""Train the demo avatar's U-Net (width 16, region 256) on two processor cores.

    python train_unet.py WORK [--minutes 45] [--rate 0.0012]

Needs dataset.py's and listening.py's output; the audio encoder and the audio branch stay as they
are. Begins with WORK/unet-start.pth where restore.py wrote it. Batch norms are left out while
training (a bias in their place; the exported weights have identity norms) and the two last stages
run only on a window around the mouth (normless.py): together four times the speed. Resumes from
WORK/unet-state.pt. Writes WORK/out/unet.pth and WORK/unet-validation.png.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import time
from typing import NamedTuple

import cv2
import numpy as np
import torch
from listening import Listener
from normless import (
    REGION,
    WINDOW_H,
    WINDOW_W,
    decode_window,
    new_network,
    reference_network,
    reference_state,
)
from numpy.typing import NDArray
from precision import autocast
from samples import Data, image_input, planes
from torch import Tensor, nn
from torch.nn import functional

from lipsync_fast.train.data import Feed
from lipsync_fast.train.losses import texture_loss
from lipsync_fast.train.options import MOST_STEPS

FRAMES, MOUTHS = 2, 6
"""A step's idle frames, and mouths put onto each: the image half runs once per frame."""
MOVING = 0.03
"""A pixel that differs more from the idle frame (0..1) counts as moving."""
STILL, SLOPES, DETAIL = 1.5, 0.4, 0.8
"""What errors count where nothing moves (6 more where something does), those of gradients, and of
the strength of fine detail: gradients alone make mouths and skin soft."""
INNER = np.s_[:, :, 3:-3, 3:-3]
"""A generated window without the pixels at its edges, which lack context and do not count."""
JUDGED = 0.3
"""How strongly the judge pulls at the pictures, against all errors together."""
SAVE_S = 120
"""Seconds between checkpoints."""


def channels_last(array: NDArray[np.float32]) -> Tensor:
    """An N x C x H x W array as a tensor in the layout that convolutions like."""
    return torch.from_numpy(array).to(memory_format=torch.channels_last)


def place_window(rng: np.random.RandomState) -> tuple[int, int]:
    """Top and left of a window of the region: mostly around the mouth, else anywhere."""
    if rng.rand() < 0.7:
        return 44 + rng.randint(-10, 11), 58 + rng.randint(-16, 17)
    return rng.randint(0, REGION - WINDOW_H + 1), rng.randint(0, REGION - WINDOW_W + 1)


def picture_loss(made: Tensor, goal: Tensor, before: Tensor) -> Tensor:
    """Error of a generated window, of its gradients and of the strength of its fine detail; what
    moves against ``before`` weighs most.

    All B x 3 x H x W in 0..1.
    """
    moving = (goal - before).abs().amax(1, keepdim=True)
    weight = STILL + 6 * functional.avg_pool2d((moving > MOVING).float(), 7, 1, 3)
    error = (made - goal)[INNER]
    loss = (error.abs() * weight[INNER]).mean()
    for dim in (2, 3):
        loss = loss + SLOPES * (torch.diff(error, dim=dim).abs()).mean()
    return loss + DETAIL * texture_loss(made[INNER], goal[INNER], weight[INNER])


class Judge(nn.Module):
    """Tells rendered windows from generated ones, patch by patch; what it sees is taken to its
    taste (hinge losses), which is that of no average of several mouths."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 16, 1), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
            conv = nn.Conv2d(inputs, outputs, 3 if stride == 1 else 4, stride, 1)
            layers += [nn.utils.parametrizations.spectral_norm(conv), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(64, 1, 3, padding=1))
        self.optimiser = torch.optim.Adam(self.parameters(), 4e-4, betas=(0.5, 0.9))
        self.to(memory_format=torch.channels_last)

    def pull(self, made: Tensor, goal: Tensor) -> Tensor:
        """Learn from generated and rendered windows, B x 3 x H x W in 0..1; then the slope, for
        each pixel of the generated ones, of how wrong they look."""
        told = self.layers(2 * torch.cat([made.detach(), goal]) - 1)
        wrong, right = told.chunk(2)
        self.optimiser.zero_grad()
        (functional.relu(1 + wrong).mean() + functional.relu(1 - right).mean()).backward()
        self.optimiser.step()
        shown = made.detach().requires_grad_()
        (slope,) = torch.autograd.grad(-self.layers(2 * shown - 1).mean(), shown)
        return slope


class Shown(NamedTuple):
    """What a step sees. F idle frames with M mouths each, N = F M; pictures are BGR in 0..1.

    Attributes:
        images: F x 6 x S x S, the idle frames as the network takes them.
        audio: N x 32 x 16 x 16.
        goal, before: N x 3 x H x W, the window of the wanted pictures and of the idle ones.
        top, left: the window's place.
    """

    images: NDArray[np.float32]
    audio: NDArray[np.float32]
    goal: NDArray[np.float32]
    before: NDArray[np.float32]
    top: int
    left: int


class Trainer:
    """The network, its running average (which is exported), and where training stands."""

    def __init__(self, work: pathlib.Path, minutes: float, rate: float) -> None:
        torch.manual_seed(2)
        self.work, self.seconds, self.rate = work, minutes * 60, rate
        listener = Listener.restored(work / "listener.pt")
        self.net = new_network()
        start = work / "unet-start.pth"
        if start.exists():
            self.net.load_state_dict(torch.load(start, weights_only=True))
        self.parameters = [
            p for name, p in self.net.named_parameters() if not name.startswith("audio_model")
        ]
        self.optimiser = torch.optim.AdamW(
            self.parameters, 1e-3, betas=(0.9, 0.98), weight_decay=1e-3
        )
        self.net.audio_model.load_state_dict(listener.branch())
        self.net.audio_model.requires_grad_(False)
        self.average = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.judge = Judge()
        self.spent, self.step = 0.0, 0
        self.losses: list[float] = []
        self.state_file = work / "unet-state.pt"
        if self.state_file.exists():
            self._resume()
        self.data = Data(work, listener)
        self.rng = np.random.RandomState(31 + self.step)

    def _resume(self) -> None:
        """Take up a former run's state."""
        state = torch.load(self.state_file, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        self.judge.load_state_dict(state["judge"])
        self.judge.optimiser.load_state_dict(state["judge_optimiser"])
        self.spent, self.step = state["spent"], state["step"]

    def save(self) -> None:
        """Checkpoint and exported weights, each appearing whole."""
        state = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "judge": self.judge.state_dict(),
            "judge_optimiser": self.judge.optimiser.state_dict(),
            "spent": self.spent,
            "step": self.step,
        }
        weights = reference_state(self.average)
        for path, what in ((self.state_file, state), (self.work / "out" / "unet.pth", weights)):
            partial = path.with_suffix(".part")
            torch.save(what, partial)
            os.replace(partial, path)

    def draw(self) -> Shown:
        """What the next step sees: two idle frames, six mouths each, one window. For one thread."""
        d, rng = self.data, self.rng
        frames = rng.choice(len(d.idle), FRAMES, replace=False)
        samples = rng.choice(d.train, FRAMES * MOUTHS)
        top, left = place_window(rng)
        shown = np.repeat(frames, MOUTHS)
        targets = [planes(d.target(s, f)) for s, f in zip(samples, shown, strict=True)]
        audio = np.stack([d.audio(s, rng) for s in samples])
        images = np.stack([image_input(d.idle[f]) for f in frames])
        idle = np.repeat(images[:, :3], MOUTHS, 0)
        window = np.s_[:, :, top : top + WINDOW_H, left : left + WINDOW_W]
        goal, before = np.stack(targets)[window], idle[window]
        return Shown(images, audio, goal, before, top, left)

    def learn(self, shown: Shown) -> None:
        """One step."""
        goal, before = torch.from_numpy(shown.goal), torch.from_numpy(shown.before)
        with autocast():
            levels = self.net.encode_image(channels_last(shown.images))
            levels = tuple(x.repeat_interleave(MOUTHS, 0) for x in levels)
            audio = channels_last(shown.audio)
            made, _ = decode_window(self.net, levels, audio, shown.top, shown.left)
        loss = picture_loss(made, goal, before)
        (slope,) = torch.autograd.grad(loss, made, retain_graph=True)
        judged = torch.zeros_like(slope)
        judged[INNER] = self.judge.pull(made[INNER], goal[INNER])
        self.optimiser.zero_grad()
        made.backward(slope + JUDGED * judged * (slope.norm() / judged.norm().clamp_min(1e-12)))
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self._update_average()
        self.step += 1
        self.losses.append(loss.item())

    @torch.no_grad()
    def _update_average(self) -> None:
        """Draw the averaged weights towards the present ones, faster at the beginning."""
        decay = min(0.998, (self.step + 1) / (self.step + 20))
        for name, value in self.net.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def sheet(self) -> float:
        """Write the validation picture; returns the mean error around the mouth in grey levels.

        Twelve pairs, the generated region left, the wanted one right.
        """
        d = self.data
        net = reference_network(self.average)
        pairs, errors = [], []
        for n, (audio, sample) in enumerate(d.held):
            frame = (7 * n) % len(d.idle)
            goal = planes(d.target(sample, frame))
            image = image_input(d.idle[frame])
            made = net(torch.from_numpy(image)[None], torch.from_numpy(audio)[None])[0].numpy()
            errors.append(np.abs(made - goal)[:, 40:170, 60:200].mean() * 255)
            if n < 12:
                pairs.append(np.concatenate([made, goal], 2).transpose(1, 2, 0))
        grid = np.concatenate([np.concatenate(pairs[k : k + 3], 1) for k in range(0, 12, 3)], 0)
        picture = np.clip(grid * 255, 0, 255).astype(np.uint8)
        cv2.imwrite(str(self.work / "unet-validation.png"), picture)
        return float(np.mean(errors))

    def run(self) -> None:
        """Train for the wall-clock time; saves and reports every SAVE_S seconds."""
        with Feed(lambda _: self.draw(), self.step, MOST_STEPS, 1) as feed:
            self._run(feed)

    def _run(self, feed: Feed[Shown]) -> None:
        last = saved = time.time()
        while self.spent < self.seconds:
            part = self.spent / self.seconds
            warm, fall = min(1, (self.step + 1) / 100), 0.5 * (1 + math.cos(math.pi * part))
            for group in self.optimiser.param_groups:
                group["lr"] = self.rate * warm * (0.02 + 0.98 * fall)
            self.learn(feed.next())
            now = time.time()
            self.spent, last = self.spent + now - last, now
            if now - saved > SAVE_S or self.spent >= self.seconds:
                self.save()
                self._report(self.sheet())
                last = saved = time.time()

    def _report(self, error: float) -> None:
        """Print the losses since the last report and the validation's error."""
        loss = np.mean(self.losses)
        self.losses = []
        print(
            f"{self.spent:5.0f} s step {self.step} loss {loss:.4f} validation {error:.2f}",
            flush=True,
        )


def main() -> None:
    """Train, resuming where a former run stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--rate", type=float, default=1.2e-3, help="highest learning rate")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    (args.work / "out").mkdir(exist_ok=True)
    Trainer(args.work, args.minutes, args.rate).run()


if __name__ == "__main__":
    main()
