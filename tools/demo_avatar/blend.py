# SPDX-License-Identifier: Apache-2.0
"""Weights between a package's networks and those that went on learning from them.

    python blend.py WORK [--part 0.5]

What has learned from many voices has forgotten some of the first one; between the two sets of
weights lie networks that hear both. Takes restore.py's and teach_branch.py's output, in which
``train_voices.py --start`` went on from the restored encoder. Writes
WORK/out/audio_encoder-blended.pth and WORK/out/unet-blended.pth for ``pack.py --again``.
"""

from __future__ import annotations

import argparse
import pathlib

import torch
from normless import REGION, encoder_state, folded, reference_state
from torch import Tensor

from lipsync_fast.models.checkpoints import load_audio_encoder, load_unet

State = dict[str, Tensor]


def between(before: State, after: State, part: float) -> State:
    """Weights so far on the way from one network to the other; all that ``before`` has."""
    return {name: torch.lerp(value, after[name], part) for name, value in before.items()}


def main() -> None:
    """Write both networks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--part", type=float, default=0.5, help="of the way, 0 to 1")
    args = parser.parse_args()
    out = args.work / "out"
    encoders = [
        folded(load_audio_encoder(out / f"audio_encoder{which}.pth").eval()).state_dict()
        for which in ("", "-tuned")
    ]
    before: State = torch.load(args.work / "unet-start.pth", weights_only=True)
    tuned = folded(load_unet(out / "unet-tuned.pth", REGION).eval()).state_dict()
    encoder = between(encoders[0], encoders[1], args.part)
    torch.save(encoder_state(encoder), out / "audio_encoder-blended.pth")
    torch.save(reference_state(between(before, tuned, args.part)), out / "unet-blended.pth")


if __name__ == "__main__":
    main()
