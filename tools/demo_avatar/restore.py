# SPDX-License-Identifier: Apache-2.0
"""Take the networks back out of a packed avatar, to go on training them.

    python restore.py WORK [--avatar FILE]

Writes WORK/out/audio_encoder.pth, and WORK/unet-start.pth, from which train_unet.py begins where
there is no unet-state.pt. The package holds half precision and folded norms: what comes out gives
the packed network's pictures.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import numpy as np
import torch
from normless import REGION, WIDTH, reference_network
from torch import Tensor

from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.models.export import export_unet
from lipsync_fast.models.packed import constants, packed_encoder, packed_unet


def unet_of(package: AvatarPackage) -> dict[str, Tensor]:
    """Weights of a package's U-Net, normless; checked: packed again they are the same.

    Raises:
        SystemExit: they are not.
    """
    image, decoder = (bytes(package.model(name)) for name in ("image", "decoder"))
    state = packed_unet(image, decoder, WIDTH, REGION, str(package.path)).state_dict()
    packed = constants(image) | constants(decoder)
    again = [constants(graph) for graph in export_unet(reference_network(state), half=True)]
    for name, value in (again[0] | again[1]).items():
        if value.ndim > 1 and not np.array_equal(value, packed[name]):
            sys.exit(f"{name} does not come back as it was")
    return state


def main() -> None:
    """Write both networks, and check that packing them again gives the same weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--avatar", type=pathlib.Path, default=shipped_folder() / "demo.lsa")
    args = parser.parse_args()
    with AvatarPackage.open(args.avatar) as package:
        hearing = packed_encoder(bytes(package.model("audio_encoder")), str(package.path))
        state = unet_of(package)
    encoder, start = args.work / "out" / "audio_encoder.pth", args.work / "unet-start.pth"
    encoder.parent.mkdir(parents=True, exist_ok=True)
    torch.save(hearing.state_dict(), encoder)
    torch.save(state, start)
    print(f"{encoder}, {start}")


if __name__ == "__main__":
    main()
