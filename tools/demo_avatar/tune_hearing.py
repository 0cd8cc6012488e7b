# SPDX-License-Identifier: Apache-2.0
"""Teach the audio encoder and the finished U-Net's audio branch once more, together.

    python tune_hearing.py WORK [--minutes 40]

train_encoder.py teaches each feature to tell the mouth from 0.2 s of sound, and listening.py the
branch from features that stay as they are. Here both learn together; all that draws pictures from
the branch's output stays as it is. So the output's meaning must stay too: a linear layer, fitted to
what the branch said before, tells the controls from it; and the output may not stray from the one
that the branch used to have when it told the same (``Before``). The gap between the lips, which
counts most, is told as it is drawn (drawn.py).

Needs teacher.py's output, WORK/out/audio_encoder.pth, and WORK/out/unet.pth or restore.py's
WORK/unet-start.pth. Writes WORK/out/audio_encoder-tuned.pth and WORK/out/unet-tuned.pth, which
pack.py prefers. Resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from averaging import average_in
from drawn import Drawn
from geometry import Geometry
from listening import AFTER, BEFORE, WEIGHTS, GapOfControls
from normless import REGION, encoder_state, folded, new_network, reference_state
from numpy.typing import NDArray
from precision import autocast
from teacher import restored
from torch import Tensor, nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "speech"))
from data import FRAME, Utterance, augmented, feature_windows, load, mel, shifted

from lipsync_fast.models.checkpoints import load_audio_encoder, load_unet
from lipsync_fast.models.unet import UNet

F32 = NDArray[np.float32]
RATE = 6e-4
REAL_SHARE, CHANGED = 0.75, 0.5
"""Parts of the recordings in the steps: real ones, and such that have noise, another pitch ..."""
FIXED = 6
"""The encoder's first layers, three fifths of its work, that do not learn again."""
TOGETHER, LONGEST = 4, 50
"""Recordings in a step, and frames of each."""
PART = 200
"""Frames of a longer recording that are changed and listened to at once."""
NEAR = 0.05
"""How much it costs when the output strays, beside the error of what it tells."""
RIDGE = 1.0
COSTS = (*WEIGHTS[:-1], 8.0)
"""How much an error of each control counts, and of the drawn gap."""
EXAMPLES = 4000
"""Frames of real and of synthetic speech each that tell what the branch used to say."""
TAUGHT = 0.7
"""How much of what is learned the teacher tells; the aligned phones ask for the rest."""
WATCHES, WATCHED = 8, 6
"""How often it is seen again what is drawn, and one in so many of those frames each time."""
MOMENTUM = 0.995
SAVE_S = 90


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
    def of(cls, rows_of_mel: F32, targets: F32, rng: np.random.RandomState | None) -> Stretch:
        """LONGEST frames from a random one on, or without ``rng`` the whole recording."""
        windows = feature_windows(rows_of_mel)
        count, first, end = len(windows), 0, len(targets)
        if rng is not None and end > LONGEST:
            first = rng.randint(end - LONGEST + 1)
            end = first + LONGEST
        rows = np.arange(first, end + BEFORE + AFTER - 1) - BEFORE - 1  # see listening.padded
        outside = (rows < -1) | (rows > count)
        rows = np.where(outside, -1, np.clip(rows, 0, count - 1))
        used = np.unique(rows[rows >= 0])
        rows = np.where(rows < 0, -1, np.searchsorted(used, rows))
        return cls(windows[used], rows, targets[first:end])


class Hearing(nn.Module):
    """Encoder and audio branch, from mel windows to the branch's output."""

    def __init__(self, encoder: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.encoder, self.branch = encoder.eval(), branch.eval()
        self.to(memory_format=torch.channels_last)

    def forward(self, some: list[Stretch]) -> Tensor:
        """The branch's output for all frames of all stretches, T x 256 x 8 x 8."""
        windows = torch.from_numpy(np.concatenate([s.windows for s in some]))[:, None]
        with autocast():
            features = self.encoder(windows.contiguous(memory_format=torch.channels_last))
            blocks, at = [], 0
            for s in some:
                mine = features[at : at + len(s.windows)]
                at += len(s.windows)
                mine = torch.cat([mine, mine.new_zeros(1, mine.shape[1])])
                rows = mine[torch.from_numpy(np.where(s.rows < 0, len(s.windows), s.rows))]
                frames = rows.unfold(0, BEFORE + AFTER, 1).transpose(1, 2)
                blocks.append(frames.reshape(-1, 32, 16, 16))
            heard = self.branch(torch.cat(blocks).contiguous(memory_format=torch.channels_last))
        out: Tensor = heard.float()
        return out


class Before:
    """What the branch said before it was tuned, which the rest of the U-Net understands.

    Attributes:
        head: Tells controls and gap from the output's mean over its map, 257 x 9.
    """

    def __init__(self, net: Hearing, speech: list[Stretch]) -> None:
        with torch.no_grad():
            some = torch.cat([net([s]) for s in speech])
        targets = torch.from_numpy(np.concatenate([s.targets for s in speech]))
        self.head = ridge(with_one(some.mean((2, 3))), targets)
        told = self.tell(some)
        self.centre, self.spread = told.mean(0), told.std(0)
        flat = some.flatten(1)
        self._output = ridge(self._terms(told), flat)
        self._variance = flat.var(0).mean()
        left = self.strayed(some, told).item()
        print(f"{1 - left:.1%} of the output is what it tells", flush=True)

    def tell(self, output: Tensor) -> Tensor:
        """Controls and gap, T x 9, that outputs (T x 256 x 8 x 8) stand for."""
        return with_one(output.mean((2, 3))) @ self.head

    def _terms(self, told: Tensor) -> Tensor:
        """One, the numbers told and their products."""
        x = with_one((told - self.centre) / self.spread)
        first, second = torch.triu_indices(x.shape[1], x.shape[1])
        return x[:, first] * x[:, second]

    def strayed(self, output: Tensor, told: Tensor) -> Tensor:
        """Mean square between outputs and what they used to be when this was told; 1 is much."""
        wanted = self._terms(told.detach()) @ self._output
        out: Tensor = (output.flatten(1) - wanted).square().mean() / self._variance
        return out


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """The linear map from rows of ``x`` to rows of ``y``."""
    x, y = x.double(), y.double()
    gram = x.T @ x + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ y).float()


def with_one(x: Tensor) -> Tensor:
    """N x C to N x (C + 1): a constant for a linear layer's offset."""
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def networks(work: pathlib.Path) -> tuple[nn.Module, UNet]:
    """The encoder and the U-Net as they are, without norms."""
    encoder = folded(load_audio_encoder(work / "out" / "audio_encoder.pth").eval())
    if (work / "out" / "unet.pth").exists():
        unet = load_unet(work / "out" / "unet.pth", REGION).eval()
        folded(unet)
        return encoder, unet
    unet = new_network()
    unet.load_state_dict(torch.load(work / "unet-start.pth", weights_only=True))
    return encoder, unet


def part_of(u: Utterance, rng: np.random.RandomState) -> Utterance:
    """A recording, or PART frames of a longer one."""
    if len(u.controls) <= PART:
        return u
    first = rng.randint(len(u.controls) - PART + 1)
    pcm = u.pcm[first * FRAME : (first + PART) * FRAME]
    return Utterance(u.name, u.split, u.origin, pcm, u.controls[first : first + PART])


def some_of(speech: list[Utterance], rng: np.random.RandomState) -> Iterator[Utterance]:
    """Random recordings, EXAMPLES frames or a little more together."""
    left = EXAMPLES
    for k in rng.permutation(len(speech)):
        u = part_of(speech[k], rng)
        yield u
        left -= len(u.controls)
        if left <= 0:
            break


class Trainer:
    """The networks, what they said before, and where training stands."""

    def __init__(self, work: pathlib.Path, minutes: float) -> None:
        self.work, self.seconds = work, 60 * minutes
        encoder, self.unet = networks(work)
        data = load(work)
        train = [u for u in data if u.split == "train"]
        self.gap = GapOfControls(Geometry(work), np.concatenate([u.controls for u in train]))
        self.real = [u for u in train if u.origin == "real"]
        self.made = [u for u in train if u.origin == "synthetic"]
        self.held = [self._whole(u) for u in data if (u.split, u.origin) == ("val", "real")]
        self.net = Hearing(encoder, self.unet.audio_model).requires_grad_(False)
        rng = np.random.RandomState(8)
        known = [self._whole(u) for speech in (self.real, self.made) for u in some_of(speech, rng)]
        self.before = Before(self.net, known)
        self.teacher = restored(work)
        self.known = known
        self.drawn = Drawn(work, self.unet)
        self.net.requires_grad_(True)
        self.net.encoder.get_submodule("audio_encoder")[:FIXED].requires_grad_(False)
        self.average = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.optimiser = torch.optim.AdamW(self.net.parameters(), RATE, weight_decay=1e-3)
        self.spent, self.step = 0.0, 0
        self.state_file = work / "speech" / "tuning-state.pt"
        if self.state_file.exists():
            self._resume()
        self.rng = np.random.RandomState(41 + self.step)
        self.watches = 0
        self._watch()

    def _watch(self) -> None:
        """See again what is drawn when the networks as they are now hear."""
        net, some = self.averaged(), self.known[self.watches % WATCHED :: WATCHED]
        with torch.no_grad():
            outputs = torch.cat([net([s]) for s in some])
        self.drawn.fit(outputs)
        self.watches += 1
        self.watched = self.spent

    def _whole(self, u: Utterance) -> Stretch:
        rows = mel(u.pcm.astype(np.float32) / 32768)
        return Stretch.of(rows, self._targets(u.controls), None)

    def _targets(self, controls: F32) -> F32:
        return np.column_stack([controls, self.gap(controls)])

    def _resume(self) -> None:
        state = torch.load(self.state_file, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average = state["average"]
        self.spent, self.step = state["spent"], state["step"]

    def averaged(self) -> Hearing:
        """A copy with the averaged weights."""
        net = copy.deepcopy(self.net)
        net.load_state_dict(self.average)
        return net

    def save(self) -> None:
        """Checkpoint and the averaged networks, each appearing whole."""
        state = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average,
            "spent": self.spent,
            "step": self.step,
        }
        net, out = self.averaged(), self.work / "out"
        unet = copy.deepcopy(self.unet)
        unet.audio_model = net.branch
        for path, what in (
            (self.state_file, state),
            (out / "audio_encoder-tuned.pth", encoder_state(net.encoder.state_dict())),
            (out / "unet-tuned.pth", reference_state(unet.state_dict())),
        ):
            partial = path.with_suffix(".part")
            torch.save(what, partial)
            os.replace(partial, path)

    def learn(self) -> tuple[float, float]:
        """One step on copies of TOGETHER recordings; returns the two losses."""
        some = []
        for _ in range(TOGETHER):
            speech = self.real if self.rng.rand() < REAL_SHARE else self.made
            lengths = np.sqrt([len(u.controls) for u in speech])
            u = speech[self.rng.choice(len(speech), p=lengths / lengths.sum())]
            change = augmented if self.rng.rand() < CHANGED else shifted
            pcm, controls = change(part_of(u, self.rng), self.rng)
            rows = mel(pcm)
            targets = self._targets(controls)
            targets += TAUGHT * (self.teacher.tell(rows, len(targets)) - targets)
            some.append(Stretch.of(rows, targets, self.rng))
        wanted = torch.from_numpy(np.concatenate([s.targets for s in some]))
        heard = self.net(some)
        told = self.before.tell(heard)
        strayed = self.before.strayed(heard, told)
        told = torch.column_stack([told[:, :-1], self.drawn.tell(heard)])
        loss = ((told - wanted) ** 2 * torch.tensor(COSTS)).mean()
        self.optimiser.zero_grad()
        (loss + NEAR * strayed).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        keep = min(MOMENTUM, self.step / (self.step + 10))
        average_in(self.average, self.net, keep)
        return loss.item(), strayed.item()

    @torch.no_grad()
    def held_out(self) -> str:
        """Pearson's r of each control, the gap and the drawn gap; how far the output strayed."""
        net = self.averaged()
        outputs = torch.cat([net([s]) for s in self.held])
        told = self.before.tell(outputs)
        strayed = self.before.strayed(outputs, told).item()
        told = torch.column_stack([told, self.drawn.tell(outputs).clamp(min=0)])
        true = np.concatenate([s.targets for s in self.held])
        columns = [*range(9), 8]
        r = [np.corrcoef(told[:, n].numpy(), true[:, k])[0, 1] for n, k in enumerate(columns)]
        return " ".join(f"{x:.3f}" for x in [*r, strayed])

    def run(self) -> None:
        """Train for the wall-clock time; saves and reports every SAVE_S seconds."""
        print(f"before: held out {self.held_out()}", flush=True)
        losses: list[tuple[float, float]] = []
        last = saved = time.time()
        while self.spent < self.seconds:
            fall = 0.5 * (1 + math.cos(math.pi * self.spent / self.seconds))
            for group in self.optimiser.param_groups:
                group["lr"] = RATE * min(1, (self.step + 1) / 40) * (0.02 + 0.98 * fall)
            if self.spent - self.watched > self.seconds / WATCHES:
                self._watch()
            losses.append(self.learn())
            now = time.time()
            self.spent, last = self.spent + now - last, now
            if now - saved > SAVE_S or self.spent >= self.seconds:
                self.save()
                told, strayed = np.mean(losses, axis=0)
                found = f"loss {told:.4f} {strayed:.3f} held out {self.held_out()}"
                print(f"{self.spent:5.0f} s step {self.step} {found}", flush=True)
                losses = []
                last = saved = time.time()


def main() -> None:
    """Train, resuming where a former run stopped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(6)
    Trainer(args.work, args.minutes).run()


if __name__ == "__main__":
    main()
