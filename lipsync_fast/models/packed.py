# SPDX-License-Identifier: Apache-2.0
"""Take the networks back out of graphs that ``models.export`` wrote, to train them further (torch).

Packages hold half precision and folded norms; what comes out gives the packed network's pictures.
Weights are found by the names that the exporter gives them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipsync_fast.errors import CheckpointError
from lipsync_fast.models.audio_encoder import AudioEncoder
from lipsync_fast.models.normless import NORM_EPSILON, new_network
from lipsync_fast.models.unet import UNet

_LAYERS = {"conv.0": "expand", "conv.3": "depthwise", "conv.6": "project"}
"""An inverted residual's convolutions in the network and in the graphs."""

Constants = Mapping[str, NDArray[np.float32]]


def constants(graph: bytes) -> dict[str, NDArray[np.float32]]:
    """A graph's weights by name, in single precision. It has been checked before."""
    import onnx
    from onnx import numpy_helper

    return {
        tensor.name.removesuffix("_half"): numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in onnx.load_from_string(graph).graph.initializer
    }


def packed_encoder(graph: bytes, source: str) -> AudioEncoder:
    """The audio encoder of a graph, with norms that change nothing.

    Raises:
        CheckpointError: the graph was written by something else.
    """
    packed = constants(graph)
    net = AudioEncoder()
    state = net.state_dict()
    for name, like in state.items():
        _, number, _, layer, leaf = name.split(".")
        if layer == "0":
            state[name] = _taken(packed, f"encoder{number}.{leaf}", like, source)
        elif leaf == "running_var":
            state[name] = torch.full_like(like, 1 - NORM_EPSILON)
    net.load_state_dict(state)
    return net.eval()


def packed_unet(image: bytes, decoder: bytes, width: int, region: int, source: str) -> UNet:
    """The normless U-Net of an image half's and a decoder's graph.

    Raises:
        CheckpointError: the graphs were written by something else.
    """
    packed = constants(image) | constants(decoder)
    net = new_network(width, region)
    state = net.state_dict()
    for name, like in state.items():
        stem, _, leaf = name.rpartition(".")
        for ours, theirs in _LAYERS.items():
            if stem.endswith(ours):
                stem = stem.removesuffix(ours) + theirs
        stem = stem.replace("outc.conv", "outc")
        if f"{stem}.{leaf}" not in packed and f"{stem}_high.{leaf}" in packed:
            if leaf == "weight":  # split where the exporter moved it before the upsampling
                halves = [packed[f"{stem}_{half}.weight"] for half in ("low", "high")]
                packed[f"{stem}.weight"] = np.concatenate(halves, 1)
            else:
                packed[f"{stem}.bias"] = packed[f"{stem}_high.bias"]
        state[name] = _taken(packed, f"{stem}.{leaf}", like, source)
    net.load_state_dict(state)
    return net


def _taken(packed: Constants, name: str, like: Tensor, source: str) -> Tensor:
    if name not in packed or packed[name].size != like.numel():
        raise CheckpointError(
            f"{source}: its graph has other weights than lipsync-fast writes ({name}); name a"
            " checkpoint (.pth) instead"
        )
    return torch.from_numpy(packed[name].copy()).reshape(like.shape)
