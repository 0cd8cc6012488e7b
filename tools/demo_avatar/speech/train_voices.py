# SPDX-License-Identifier: Apache-2.0
"""Train the audio encoder on the corpus of voices.

    python train_voices.py WORK [--rolled 3000 --windows 1000] [--start PTH] [--share-alike]
                                [--threads 1]

First rolled out, then in windows (hearing.py); both for a number of steps, so that a run gives the
same network on the same machine however often it was interrupted. ``--start`` goes on from an
encoder that was trained before. Checkpoints every two minutes to WORK/speech/voices-state.pt and
goes on from there; copies or recordings that were added meanwhile are used from then on. Writes
WORK/out/hearing.pt (encoder and readout, averaged over the last steps) and
WORK/out/audio_encoder-voices.pth (the encoder alone).
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
from copies import ROW_S, Copy, load_copies
from data import mel
from disturb import at_level
from hearing import CLOSE, EARLIER, ROLLED_ROWS, SEEN, Hearing, Listener, rolled_rows
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from voices import Voice, load

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from averaging import average_in
from lips import LipNet, fitted

F32 = NDArray[np.float32]
RATE, WINDOWS_RATE = 2e-3, 5e-4
WEIGHTS = (3.0, 0.0, 1.0, 1.0, 1.0, 1.5, 1.0, 0.7)
"""How much an error of each control counts; the closure's is a cross entropy instead."""
CLOSING, GAP, TELLING = 0.6, 4.0, 0.15
"""How much count the closure, the opening between closures, and the phone's class."""
HEADS = (0.4, 0.35, 0.25)
"""How much each look-ahead counts."""
SHARES = {"reader": 0.7, "real": 0.7, "synthetic": 0.3}
"""How often what kind of recording is taken, by its length."""
ROLLED = (4, 360)
WINDOWS = (4, 32)
"""Pieces in a step, and their mel rows or frames."""
GOING_ON = 0.4
"""How fast an encoder learns that was trained before, beside a new one."""
STARTING = 6
"""Batches that its norms take their statistics of."""
SEED = 100_003
SILENCE = -4.0
MOMENTUM = 0.985
SAVE_S, TOLD_STEPS = 120, 50
"""How often to save, and after how many steps to measure by held-out readers."""


def louder(rows: F32, db: float) -> F32:
    """Mel rows of the same sound at another level; exact while nothing is clipped."""
    out: F32 = np.clip(rows + np.float32(0.08 * db), SILENCE, 4.0)
    return out


def together(a: F32, b: F32) -> F32:
    """Mel rows of two sounds at once, taking them to be unlike each other."""
    apart = np.exp(np.abs(a - b) * np.float32(-1.25 * np.log(10)))  # a row's unit is 12.5 dB
    out: F32 = np.maximum(a, b) + np.float32(0.8 / np.log(10)) * np.log1p(apart)
    return out


def roughened(rows: F32, other: F32, rng: np.random.RandomState) -> F32:
    """Mel rows (T x 80) of speech at -20 dB at another level, in noise, with other voices."""
    if rng.rand() < 0.5:  # another vocal tract
        at = np.clip(np.arange(80) * np.exp(rng.uniform(-0.1, 0.1)), 0, 78.999)
        left = at.astype(int)
        part = (at - left).astype(np.float32)
        rows = rows[:, left] * (1 - part) + rows[:, left + 1] * part
    if rng.rand() < 0.35:
        rows = together(rows, louder(other, -rng.uniform(8, 35)))
    if rng.rand() < 0.35:
        tilt = np.linspace(0, rng.uniform(-1.5, 0.5), 80)
        noise = rng.uniform(-4, -1.0) + tilt + 0.3 * rng.randn(*rows.shape)
        rows = together(rows, noise.astype(np.float32))
    level = rng.uniform(-30, 14) if rng.rand() < 0.45 else 5 * rng.randn()
    rows = louder(rows, level)
    if rng.rand() < 0.3:
        width = rng.randint(4, 14)
        band = rng.randint(80 - width)
        rows[:, band : band + width] = rows[:, band : band + width].mean()
    return rows.astype(np.float32)


class Speech:
    """The training speech: copies, and random pieces of them."""

    def __init__(self, copies: list[Copy]) -> None:
        self.copies, self.rng = copies, np.random.RandomState(0)
        often = np.array([SHARES[c.voice.origin] * len(c.rows) for c in copies])
        self._often = often / often.sum()

    def piece(self, count: int) -> tuple[F32, Copy, int]:
        """So many mel rows from a random place, the copy that they are of, and their first row."""
        copy = self.copies[self.rng.choice(len(self.copies), p=self._often)]
        start = self.rng.randint(-10, max(-9, len(copy.rows) - count + 10))
        return roughened(self._cut(copy, start, count), self.other(count), self.rng), copy, start

    def other(self, count: int) -> F32:
        """A piece of one or two other voices."""
        picked = [self.copies[self.rng.randint(len(self.copies))] for _ in range(2)]
        first, second = (
            self._cut(c, self.rng.randint(max(1, len(c.rows) - count)), count) for c in picked
        )
        return first if self.rng.rand() < 0.4 else together(first, second)

    @staticmethod
    def _cut(copy: Copy, start: int, count: int) -> F32:
        out = np.full((count, 80), SILENCE, np.float32)
        low, high = max(0, start), min(len(copy.rows), start + count)
        if high > low:
            out[low - start : high - start] = copy.rows[low:high]
        return out


Batch = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]
"""Rows or windows, and for each head controls, classes and whether to believe them."""


def stacked(xs: list[F32], wanted: list[tuple[F32, ...]]) -> Batch:
    """Pieces as a batch."""
    controls, classes, believed = (
        torch.from_numpy(np.stack([w[k] for w in wanted])) for k in range(3)
    )
    return torch.from_numpy(np.stack(xs)), (controls, classes, believed)


def rolled_batch(speech: Speech) -> Batch:
    """Rows B x 80 x T, and targets for each step and head."""
    xs, wanted = [], []
    for _ in range(ROLLED[0]):
        rows, copy, start = speech.piece(ROLLED[1])
        last = start + ROLLED_ROWS * np.arange(SEEN - 1, ROLLED[1] // ROLLED_ROWS)
        heads = [copy.at((last + rolled_rows(h)) * ROW_S) for h in range(len(EARLIER))]
        xs.append(np.ascontiguousarray(rows.T))
        wanted.append(tuple(np.stack([h[k] for h in heads], 1) for k in range(3)))
    return stacked(xs, wanted)


def windows_batch(speech: Speech) -> Batch:
    """Windows B x N x 80 x 16, and targets for each frame and head."""
    xs, wanted = [], []
    count = WINDOWS[1] + SEEN - 1
    firsts = (3.2 * np.arange(count)).astype(int)
    for _ in range(WINDOWS[0]):
        rows, copy, start = speech.piece(int(firsts[-1]) + 16)
        xs.append(np.stack([rows[f : f + 16].T for f in firsts]))
        last = start + 3.2 * np.arange(SEEN - 1, count)
        heads = [copy.at((last + 1.6 + 3.2 * e) * ROW_S) for e in EARLIER]
        wanted.append(tuple(np.stack([h[k] for h in heads], 1) for k in range(3)))
    return stacked(xs, wanted)


def error_of(told: Tensor, wanted: tuple[Tensor, Tensor, Tensor], lips: LipNet) -> Tensor:
    """The loss of B x N x heads x (8 + classes)."""
    controls, classes, believed = wanted
    by_head = believed * torch.tensor(HEADS)
    close = controls[..., CLOSE]
    error = ((told[..., :8] - controls) ** 2 * torch.tensor(WEIGHTS)).mean(-1)
    error = error + CLOSING * functional.binary_cross_entropy_with_logits(
        told[..., CLOSE], close, reduction="none"
    )
    open_lips = torch.cat([told[..., :1], close[..., None], told[..., 2:8]], -1)
    gaps = ((lips(open_lips) - lips(controls)) ** 2).mean(-1) * (1 - close)
    error = error + GAP * gaps
    phones = functional.cross_entropy(told[..., 8:].movedim(-1, 1), classes, reduction="none")
    error = error + TELLING * phones
    return (error * by_head).sum() / by_head.sum()


class Trainer:
    """The network, its average, and where training stands."""

    def __init__(
        self,
        work: pathlib.Path,
        steps: tuple[int, int],
        share_alike: bool,
        start: pathlib.Path | None = None,
    ) -> None:
        self.work, self.steps = work, steps
        self.state_file = work / "speech" / "voices-state.pt"
        voices = load(work, share_alike)
        self.copies = load_copies(work, [v for v in voices if v.split == "train"])
        self.held = [v for v in voices if v.split == "val"]
        frames = [v.frames() for v in voices if v.origin != "synthetic"]
        self.lips = fitted(work, np.concatenate(frames))
        self.net, self.step = Hearing(), 0
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.03
        encoder = list(self.net.encoder.parameters())
        if start is not None:
            encoder = self._begin_with(start)
        self.average = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.optimiser = torch.optim.AdamW(
            [
                {"params": encoder, "part": 1.0 if start is None else GOING_ON},
                {"params": list(self.net.readout.parameters()), "part": 1.0},
            ],
            RATE,
            weight_decay=1e-2,
        )
        if self.state_file.exists():
            state = torch.load(self.state_file, weights_only=True)
            self.net.load_state_dict(state["net"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average, self.step = state["average"], state["step"]
        minutes = sum(len(c.rows) for c in self.copies) * ROW_S / 60
        speakers = len({c.voice.speaker for c in self.copies})
        print(f"{len(self.copies)} copies, {minutes:.0f} min, {speakers} speakers", flush=True)

    def _begin_with(self, start: pathlib.Path) -> list[nn.Parameter]:
        """Go on from a trained encoder; returns its weights that learn."""
        speech = Speech(self.copies)
        speech.rng.seed(SEED)
        windows = torch.cat([windows_batch(speech)[0].flatten(0, 1) for _ in range(STARTING)])
        return self.net.go_on(torch.load(start, weights_only=True), windows)

    def rate(self) -> float:
        """The learning rate of this step: each stage rises, then falls as a cosine."""
        rolled, windows = self.steps
        late = self.step >= rolled
        done = (self.step - rolled) / max(1, windows) if late else self.step / rolled
        warm = min(1.0, (self.step - rolled * late + 1) / 60)
        fall = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return (WINDOWS_RATE if late else RATE) * warm * fall

    def learn(self, speech: Speech) -> float:
        """One step; returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate() * group["part"]
        if self.step < self.steps[0]:
            x, wanted = rolled_batch(speech)
            told = self.net.rolled(x)
        else:
            x, wanted = windows_batch(speech)
            told = self.net.windowed(x)
        loss = error_of(told, wanted, self.lips)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 2.0)
        self.optimiser.step()
        self.step += 1
        keep = min(MOMENTUM, (self.step + 1) / (self.step + 20))
        average_in(self.average, self.net, keep)
        return loss.item()

    def save(self) -> None:
        """Checkpoint and the averaged networks, each appearing whole."""
        state = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        out, start = self.work / "out", "encoder."
        out.mkdir(exist_ok=True)
        encoder = {k[len(start) :]: v for k, v in self.average.items() if k.startswith(start)}
        for path, what in (
            (self.state_file, state),
            (out / "hearing.pt", self.average),
            (out / "audio_encoder-voices.pth", encoder),
        ):
            partial = path.with_suffix(".part")
            torch.save(what, partial)
            os.replace(partial, path)

    @torch.no_grad()
    def held_out(self) -> str:
        """How well held-out readers are heard, rolled out or in windows as the stage is."""
        if self.step >= self.steps[0]:
            return held_out_windows(
                Listener(self.work / "out" / "hearing.pt"), self.held, self.lips
            )
        net = Hearing().eval()
        net.load_state_dict(self.average)
        return held_out_rolled(net, self.held, self.lips)

    def run(self) -> None:
        """Train to the last step."""
        saved, losses, speech = time.time(), list[float](), Speech(self.copies)
        while self.step < sum(self.steps):
            speech.rng.seed(SEED + self.step)
            torch.manual_seed(SEED + self.step)
            losses.append(self.learn(speech))
            tells = self.step % TOLD_STEPS == 0 or self.step == sum(self.steps)
            if tells or time.time() - saved > SAVE_S:
                self.save()
                saved = time.time()
            if tells:
                found = f"loss {np.mean(losses):.4f} held out {self.held_out()}"
                print(f"step {self.step} {found}", flush=True)
                losses = []


def summary(gaps: list[tuple[F32, F32]], closes: list[tuple[F32, F32]]) -> str:
    """Mean and pooled r of the opening, and pooled r of the closure."""
    each = [np.corrcoef(a, b)[0, 1] for a, b in gaps]
    pooled = np.corrcoef(*(np.concatenate(some) for some in zip(*gaps, strict=True)))[0, 1]
    close = np.corrcoef(*(np.concatenate(some) for some in zip(*closes, strict=True)))[0, 1]
    return f"r {np.mean(each):.3f} pooled {pooled:.3f} closure {close:.3f}"


def held_out_windows(listener: Listener, held: list[Voice], lips: LipNet) -> str:
    """Figures of a listener on recordings."""
    gaps, closes = [], []
    for voice in held:
        told, true = listener.raw(voice.sound), voice.frames()
        gaps.append((lips.pixels(told)[:, 0], lips.pixels(true)[:, 0]))
        closes.append((told[:, CLOSE], true[:, CLOSE]))
    return summary(gaps, closes)


def held_out_rolled(net: Hearing, held: list[Voice], lips: LipNet) -> str:
    """The same for the first head of a network that is rolled out."""
    gaps, closes = [], []
    for voice in held:
        rows = mel(at_level(voice.sound, -20.0))
        x = np.pad(rows, ((60, 20), (0, 0)), constant_values=SILENCE).T[None]
        told = net.rolled(torch.from_numpy(np.ascontiguousarray(x)))[0, :, 0, :8].numpy()
        told[:, CLOSE] = 1 / (1 + np.exp(-told[:, CLOSE]))
        moments = (ROLLED_ROWS * (np.arange(len(told)) + SEEN - 1) - 60 + rolled_rows(0)) * ROW_S
        true, _, believed = voice.at(moments)
        use = believed > 0
        gaps.append((lips.pixels(told)[use, 0], lips.pixels(true)[use, 0]))
        closes.append((told[use, CLOSE], true[use, CLOSE]))
    return summary(gaps, closes)


def main() -> None:
    """Train, resuming where a former run stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--rolled", type=int, default=3000)
    parser.add_argument("--windows", type=int, default=1000)
    parser.add_argument("--start", type=pathlib.Path, metavar="PTH", help="a trained encoder")
    parser.add_argument("--share-alike", action="store_true", help="with CC BY-SA recordings")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(3)
    Trainer(args.work, (args.rolled, args.windows), args.share_alike, args.start).run()


if __name__ == "__main__":
    main()
