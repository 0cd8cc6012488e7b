# SPDX-License-Identifier: Apache-2.0
"""Let the mouth of a finished U-Net swing farther: wider where it is open, shut where it nearly is.

    python widen.py WORK [--gain 1.2] [--shut 0.5] [--steps 200] [--threads 1]

What a network hears of an unknown voice swings less than the mouth does: where it is not sure, it
tells the mean. The audio branch of WORK/out/unet.pth learns here to say, where it has heard a gap
between the lips, what it says (``tune_hearing.Before``) where it has heard one that is ``--shut``
pixels narrower and then ``--gain`` times as wide. Everything else that is heard goes along as it
does with the gap. All that draws stays as it is. Needs train_encoder.py's features
(``--features-only`` will do). Writes WORK/out/unet-tuned.pth, which pack.py prefers.
"""

from __future__ import annotations

import argparse
import copy
import pathlib
from dataclasses import dataclass

import numpy as np
import torch
from geometry import Geometry
from listening import GAP_UNIT, GapOfControls, Utterance, load, utterances
from normless import REGION, folded, reference_state
from teach_branch import Former, Heard, save, taught
from torch import Tensor, nn
from tune_hearing import Before

from lipsync_fast.models.checkpoints import load_unet

KNOWN, LEARNT = 4000, 12_000
"""Frames that tell what the branch says, and those that it learns from, of real and synthetic
speech each half."""


@dataclass(frozen=True)
class Told:
    """What outputs tell; stands for teach_branch.Meaning where targets are in its own terms."""

    before: Before

    @staticmethod
    def told_for(wanted: Tensor) -> Tensor:
        """The same."""
        return wanted


def some_of(speech: list[Utterance], frames: int, seed: int) -> list[Utterance]:
    """Random recordings of both kinds, half of the frames each."""
    rng, out = np.random.RandomState(seed), []
    for real in (True, False):
        kind, left = [u for u in speech if u.name.startswith("real") == real], frames // 2
        for k in rng.permutation(len(kind)):
            out.append(kind[k])
            left -= len(kind[k].targets)
            if left <= 0:
                break
    return out


def widened(told: Tensor, gain: float, shut: float) -> Tensor:
    """Controls and gap as told, T x 9, with the gap wider and what goes with it.

    Args:
        shut: in GAP_UNIT.
    """
    gap = told[:, 8]
    apart = gap - gap.mean()
    slopes = (told * apart[:, None]).mean(0) / apart.square().mean()
    wanted = (gain * (gap - shut)).clamp(min=0) - shut * (gap < shut)
    return told + (wanted - gap)[:, None] * slopes


def main() -> None:
    """Teach, and write the network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--gain", type=float, default=1.2)
    parser.add_argument("--shut", type=float, default=0.5, help="pixels")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(6)
    unet = load_unet(args.work / "out" / "unet.pth", REGION).eval()
    folded(unet)
    recorded = load(args.work, "train")
    gap = GapOfControls(Geometry(args.work), np.concatenate([known for _, _, known in recorded]))
    speech = utterances(recorded, gap)
    former = Former(nn.Identity(), unet.audio_model)
    before = Before(former, some_of(speech, KNOWN, 8))
    learnt = some_of(speech, LEARNT, 4)
    told = widened(before.tell(former(learnt)), args.gain, args.shut / GAP_UNIT).numpy()
    ends = np.cumsum([len(u.targets) for u in learnt])[:-1]
    heard = [Heard(u.padded, t) for u, t in zip(learnt, np.split(told, ends), strict=True)]
    branch = copy.deepcopy(unet.audio_model)
    unet.audio_model = taught(branch, Told(before), heard, args.steps)  # type: ignore[arg-type]
    save(args.work / "out" / "unet-tuned.pth", reference_state(unet.state_dict()))


if __name__ == "__main__":
    main()
