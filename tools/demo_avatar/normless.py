# SPDX-License-Identifier: Apache-2.0
"""The demo avatar's U-Net as it is trained: without batch norms, and decoded only in a window.

See ``lipsync_fast.models.normless``; here are the sizes, and the audio encoder's part.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lipsync_fast.geometry import Rect
from lipsync_fast.models import normless
from lipsync_fast.models.audio_encoder import AudioEncoder
from lipsync_fast.models.normless import NORM_EPSILON
from lipsync_fast.models.unet import UNet

WIDTH, REGION = 16, 256
WINDOW_H, WINDOW_W = 112, 144
"""The window's size in pixels of the region."""


def new_network() -> UNet:
    """An untrained network without norms that gives the picture back."""
    return normless.new_network(WIDTH, REGION)


def reference_state(net_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the normless network under the family's names, with identity batch norms."""
    return normless.reference_state(net_state, WIDTH, REGION)


def reference_network(net_state: dict[str, Tensor]) -> UNet:
    """A network of the family, for inference, with the weights of the normless one."""
    return normless.reference_network(net_state, WIDTH, REGION)


def decode_window(
    net: UNet, levels: tuple[Tensor, ...], audio: Tensor, top: int, left: int
) -> tuple[Tensor, Tensor]:
    """``normless.decode_window`` for the window that begins there, and what was heard."""
    heard = net.audio_model(audio)
    window = Rect(left, top, WINDOW_W, WINDOW_H)
    return normless.decode_window(net, levels, heard, window), heard


def folded(net: nn.Module) -> nn.Module:
    """Fold the batch norms of a network for inference into the convolutions before them."""
    for module in net.modules():
        children = dict(module.named_children())
        for (name, conv), (after, norm) in itertools.pairwise(children.items()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())
    return net.to(memory_format=torch.channels_last)


def encoder_state(folded_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a folded audio encoder under its own names, with norms that change nothing."""
    state = AudioEncoder().state_dict()
    for name, like in state.items():
        if name in folded_state:
            state[name] = folded_state[name]
        elif name.endswith("running_var"):
            state[name] = torch.full_like(like, 1 - NORM_EPSILON)
    return state
