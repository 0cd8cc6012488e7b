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
import onnx
import torch
from normless import NORM_EPSILON, new_network, reference_network
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.models.audio_encoder import AudioEncoder
from lipsync_fast.models.export import export_unet

LAYERS = {"conv.0": "expand", "conv.3": "depthwise", "conv.6": "project"}
"""An inverted residual's convolutions, here and in the graphs."""


def constants(graph: bytes) -> dict[str, NDArray[np.float32]]:
    """A graph's weights by name, in single precision."""
    initializers = onnx.load_from_string(graph).graph.initializer
    return {
        t.name.removesuffix("_half"): numpy_helper.to_array(t).astype(np.float32)
        for t in initializers
    }


def encoder_state(packed: dict[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    """Weights of the audio encoder, with norms that change nothing."""
    state = AudioEncoder().state_dict()
    for name, like in state.items():
        _, number, _, layer, leaf = name.split(".")
        if layer == "0":
            state[name] = torch.from_numpy(packed[f"encoder{number}.{leaf}"])
        elif leaf == "running_var":
            state[name] = torch.full_like(like, 1 - NORM_EPSILON)
    return state


def unet_state(packed: dict[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    """Weights of the normless U-Net.

    Raises:
        KeyError: a weight is missing; the package has another family's networks.
    """
    state = new_network().state_dict()
    for name, like in state.items():
        stem, _, leaf = name.rpartition(".")
        for ours, theirs in LAYERS.items():
            if stem.endswith(ours):
                stem = stem.removesuffix(ours) + theirs
        stem = stem.replace("outc.conv", "outc")
        if f"{stem}.{leaf}" in packed:
            value = packed[f"{stem}.{leaf}"]
        elif leaf == "bias":
            value = packed[f"{stem}_high.bias"]
        else:
            value = np.concatenate([packed[f"{stem}_low.weight"], packed[f"{stem}_high.weight"]], 1)
        state[name] = torch.from_numpy(value).reshape(like.shape)
    return state


def packed_unet(package: AvatarPackage) -> dict[str, Tensor]:
    """Weights of a package's U-Net, normless; checked: packed again they are the same.

    Raises:
        SystemExit: they are not.
    """
    image, decoder = (constants(bytes(package.model(name))) for name in ("image", "decoder"))
    packed = image | decoder
    state = unet_state(packed)
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
        hearing = constants(bytes(package.model("audio_encoder")))
        state = packed_unet(package)
    encoder, start = args.work / "out" / "audio_encoder.pth", args.work / "unet-start.pth"
    encoder.parent.mkdir(parents=True, exist_ok=True)
    torch.save(encoder_state(hearing), encoder)
    torch.save(state, start)
    print(f"{encoder}, {start}")


if __name__ == "__main__":
    main()
