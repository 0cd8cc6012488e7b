# SPDX-License-Identifier: Apache-2.0
"""Teach the audio branch of a finished U-Net to hear by another audio encoder.

    python teach_branch.py WORK [--steps 400] [--minutes 10] [--share-alike] [--threads 1]

For a package that exists, of which all that draws stays as it is. The readout that train_voices.py
has taught beside its encoder sees the sixteen features that the branch sees, so what it tells of
them (calibrated as evaluate_hearing.py does) can be learned without error: no alignment is between.
``Before`` (tune_hearing.py) knows what the branch's output used to be for a mouth; that the branch
learns to say again, of any speech, by the new encoder.

Needs restore.py's and train_voices.py's output, and copies.py's. Writes
WORK/out/audio_encoder-tuned.pth and WORK/out/unet-tuned.pth for ``pack.py --again``.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import pathlib
import sys
from dataclasses import dataclass

import numpy as np
import torch
from averaging import average_in
from evaluate_hearing import calibration_for
from lips import UNIT, LipNet, fitted
from listening import padded
from normless import reference_state
from numpy.typing import NDArray
from torch import Tensor, nn
from tune_hearing import COSTS, Before, networks

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "speech"))
from copies import ROW_S, Copy, load_copies
from data import feature_windows, mel
from hearing import Calibration, Listener
from train_voices import Speech, roughened
from voices import Voice, load

F32 = NDArray[np.float32]
RATE, BATCH, MOMENTUM = 8e-4, 48, 0.99
SPREAD = 0.5
"""How much it costs when the output is another than it used to be, beside what it tells."""
KNOWN = {"real": 2000, "synthetic": 700}
"""Frames of the speech that the package learned from, which tell what its branch used to say."""
SHARES = {"reader": 0.6, "real": 0.2, "synthetic": 0.2}
"""Parts of the speech that is listened to."""
LONGEST = 800
"""Mel rows of a piece of speech."""
AT_ONCE = 128
REPORT_STEPS = 50


@dataclass(frozen=True)
class Heard:
    """Frames of a piece of speech: padded features (frames + 15 x 512), and what is to be told.

    ``targets`` are controls and gap, frames x 9.
    """

    padded: F32
    targets: F32

    def block(self, frame: int) -> F32:
        """The 32 x 16 x 16 audio block of a frame."""
        return self.padded[frame : frame + 16].reshape(32, 16, 16)


@torch.no_grad()
def features(encoder: nn.Module, rows: F32, frames: int) -> F32:
    """Padded features of mel rows, as blocks see them."""
    windows = torch.from_numpy(feature_windows(rows))[:, None]
    return padded(torch.cat([encoder(w) for w in windows.split(AT_ONCE)]).numpy(), frames)


class Former:
    """Encoder and branch as they were; stands for tune_hearing.Hearing, in single precision."""

    def __init__(self, encoder: nn.Module, branch: nn.Module) -> None:
        self._encoder, self._branch = encoder, branch
        self._outputs: dict[int, Tensor] = {}

    def heard(self, voice: Voice, lips: LipNet) -> Heard:
        """A recording as the former encoder hears it, and what its phones ask for."""
        controls = voice.frames()
        rows = mel(voice.sound)
        return Heard(features(self._encoder, rows, len(controls)), with_gap(controls, lips))

    @torch.no_grad()
    def __call__(self, some: list[Heard]) -> Tensor:
        """The branch's output for all frames of all pieces; each is computed once."""
        for h in some:
            if id(h) not in self._outputs:
                blocks = torch.from_numpy(np.stack([h.block(i) for i in range(len(h.targets))]))
                made = [self._branch(b) for b in blocks.split(AT_ONCE)]
                self._outputs[id(h)] = torch.cat(made)
        return torch.cat([self._outputs[id(h)] for h in some])


def with_gap(controls: F32, lips: LipNet) -> F32:
    """Controls, N x 8, with the gap, N x 9."""
    return np.column_stack([controls, lips.pixels(controls)[:, 0] / UNIT]).astype(np.float32)


def known_speech(former: Former, voices: list[Voice], lips: LipNet) -> dict[str, list[Heard]]:
    """Random recordings of what the package learned from, as many frames as KNOWN says."""
    out: dict[str, list[Heard]] = {}
    for origin, count in KNOWN.items():
        some = [v for v in voices if (v.split, v.origin) == ("train", origin)]
        out[origin], left = [], count
        for k in np.random.RandomState(8).permutation(len(some)):
            out[origin].append(former.heard(some[k], lips))
            left -= len(out[origin][-1].targets)
            if left <= 0:
                break
    return out


class Meaning:
    """What the branch's output used to be for a mouth: ``Before``, and how far it swung."""

    def __init__(self, former: Former, known: dict[str, list[Heard]]) -> None:
        self.before = Before(former, [h for some in known.values() for h in some])
        real = known["real"] or known["synthetic"]
        true = torch.from_numpy(np.concatenate([h.targets for h in real]))
        told = torch.cat([self.before.tell(former([h])) for h in real])
        self._true, self._told = true.mean(0), told.mean(0)
        self._swing = told.std(0) / true.std(0)
        print("told swings by", " ".join(f"{x:.2f}" for x in self._swing), flush=True)

    def told_for(self, wanted: Tensor) -> Tensor:
        """What the output used to tell where a mouth (N x 9) was drawn."""
        return self._told + (wanted - self._true) * self._swing


def listened(
    work: pathlib.Path,
    listener: Listener,
    by: Calibration,
    lips: LipNet,
    minutes: float,
    share_alike: bool,
) -> list[Heard]:
    """Pieces of training speech in noise and at other levels, and what is heard in them."""
    copies = load_copies(work, [v for v in load(work, share_alike) if v.split == "train"])
    rng, out = np.random.RandomState(4), []
    speech = Speech(copies)
    for origin, part in SHARES.items():
        some = [c for c in copies if c.voice.origin == origin]
        left = minutes * 60 / ROW_S * part if some else 0.0
        while left > 0:
            rows = piece(some[rng.randint(len(some))], speech, rng)
            frames = int(len(rows) / 3.2)
            x = features(listener.encoder, rows, frames)
            out.append(Heard(x, with_gap(by(listener.told(x)[:frames]), lips)))
            left -= len(rows)
    return out


def piece(copy_: Copy, speech: Speech, rng: np.random.RandomState) -> F32:
    """Some rows of a copy, roughened as in train_voices.py."""
    count = min(LONGEST, len(copy_.rows))
    first = rng.randint(len(copy_.rows) - count + 1)
    rows = copy_.rows[first : first + count].astype(np.float32)
    return roughened(rows, speech.other(count), rng)


def taught(branch: nn.Module, meaning: Meaning, speech: list[Heard], steps: int) -> nn.Module:
    """Train the branch; returns it with averaged weights."""
    before, costs, rng = meaning.before, torch.tensor(COSTS), np.random.RandomState(6)
    lengths = np.array([len(h.targets) for h in speech], np.float64)
    lengths /= lengths.sum()
    branch.requires_grad_(True)
    average = {k: v.clone() for k, v in branch.state_dict().items()}
    optimiser = torch.optim.AdamW(branch.parameters(), RATE, weight_decay=1e-3)
    losses: list[tuple[float, float]] = []
    for step in range(steps):
        fall = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 30) * fall
        some = [speech[k] for k in rng.choice(len(speech), BATCH, p=lengths)]
        at = [rng.randint(len(h.targets)) for h in some]
        blocks = torch.from_numpy(np.stack([h.block(i) for h, i in zip(some, at, strict=True)]))
        wanted = torch.from_numpy(np.stack([h.targets[i] for h, i in zip(some, at, strict=True)]))
        wanted = meaning.told_for(wanted)
        output = branch(blocks)
        told = ((before.tell(output) - wanted) ** 2 * costs).mean()
        strayed = before.strayed(output, wanted)
        optimiser.zero_grad()
        (told + SPREAD * strayed).backward()
        nn.utils.clip_grad_norm_(branch.parameters(), 1.0)
        optimiser.step()
        average_in(average, branch, min(MOMENTUM, (step + 1) / (step + 10)))
        losses.append((told.item(), strayed.item()))
        if (step + 1) % REPORT_STEPS == 0:
            print(f"step {step + 1} loss {np.mean(losses, axis=0).round(4)}", flush=True)
            losses = []
    branch.load_state_dict(average)
    return branch.requires_grad_(False)


def save(path: pathlib.Path, state: dict[str, Tensor]) -> None:
    """Write weights, appearing whole."""
    partial = path.with_suffix(".part")
    torch.save(state, partial)
    os.replace(partial, path)


def main() -> None:
    """Teach, and write both networks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--minutes", type=float, default=10, help="of speech")
    parser.add_argument("--share-alike", action="store_true", help="with CC BY-SA recordings")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(6)
    everything = load(args.work, share_alike=True)
    lips = fitted(args.work, np.concatenate([v.frames() for v in everything]))
    listener = Listener(args.work / "out" / "hearing.pt")
    held = [v for v in everything if (v.split, v.origin) == ("val", "reader")]
    by = calibration_for(listener, held, lips)
    encoder, unet = networks(args.work)
    former = Former(encoder, unet.audio_model.eval())
    meaning = Meaning(former, known_speech(former, everything, lips))
    speech = listened(args.work, listener, by, lips, args.minutes, args.share_alike)
    print(f"{sum(len(h.targets) for h in speech)} frames", flush=True)
    unet.audio_model = taught(copy.deepcopy(unet.audio_model), meaning, speech, args.steps)
    out = args.work / "out"
    heard_by = torch.load(out / "audio_encoder-voices.pth", weights_only=True)
    save(out / "audio_encoder-tuned.pth", heard_by)
    save(out / "unet-tuned.pth", reference_state(unet.state_dict()))


if __name__ == "__main__":
    main()
