# SPDX-License-Identifier: Apache-2.0
"""The U-Net as it is trained: without batch norms, and decoded only in a window.

Batch norms are left out while training, with a bias in their place; ``reference_state`` gives the
weights back in the family's form, with identity norms. The two last stages, which are most of the
work, run only on the window that the loss looks at.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lipsync_fast.models.audio_encoder import AudioEncoder
from lipsync_fast.models.unet import InvertedResidual, UNet

WIDTH, REGION = 16, 256
WINDOW_H, WINDOW_W = 112, 144
"""The window's size in pixels of the region."""
NORM_EPSILON = 1e-5
"""What a batch norm adds to the variance."""


def new_network() -> UNet:
    """An untrained network without norms that gives the picture back."""
    net = pass_picture_through(without_norms(UNet(WIDTH, REGION)))
    return net.to(memory_format=torch.channels_last)


def without_norms(net: UNet) -> UNet:
    """Replace each convolution + batch norm by a convolution with bias, initialised for ReLU."""
    for module in net.modules():
        pairs = []
        if isinstance(module, InvertedResidual):
            pairs = [(module.conv, 0, 1), (module.conv, 3, 4), (module.conv, 6, 7)]
        for seq, c, b in pairs:
            conv = seq[c]
            fan = conv.weight[0].numel()
            gain = 2.0 if c != 6 else 0.2 if module.residual else 1.0
            nn.init.normal_(conv.weight, 0, math.sqrt(gain / fan))
            conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
            seq[b] = nn.Identity()
    for name in ("3", "5"):
        conv = getattr(net.audio_model, f"conv{name}")
        nn.init.normal_(conv.weight, 0, math.sqrt(2.0 / conv.weight[0].numel()))
        setattr(net.audio_model, f"bn{name}", nn.Identity())
    return net


@torch.no_grad()
def pass_picture_through(net: UNet) -> UNet:
    """Make an untrained network give back the unmasked picture, so that it only learns changes.

    The first block's channels 0..2 carry the picture (nothing in it is negative, so ReLU keeps
    it), the last stage takes them from the skip, and 4.4 (y - 0.5) is close to the logit of y.
    """
    skip = WIDTH  # the skip's first channel in the last stage's input
    for block, first in ((net.inc.inconv[0], 0), (net.up5.conv.double_conv[0], skip)):
        expand, depthwise, project = block.conv[0], block.conv[3], block.conv[6]
        expand.weight[:3] = 0
        depthwise.weight[:3] = 0
        project.weight[:3] = 0
        for k in range(3):
            expand.weight[k, first + k] = 1
            depthwise.weight[k, 0, 1, 1] = 1
            project.weight[k, k] = 1
    net.up5.conv.double_conv[1].conv[6].weight[:3] = 0
    net.outc.conv.weight *= 0.3
    for k in range(3):
        net.outc.conv.weight[k, :3] = 0
        net.outc.conv.weight[k, k] = 4.4
    net.outc.conv.bias.fill_(-2.2)
    return net


def reference_state(net_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the normless network under the family's names, with identity batch norms.

    A norm's bias takes over the bias of the convolution before it; its weight is 1, its mean 0,
    and its variance such that it divides by 1.
    """
    out: dict[str, Tensor] = {}
    for name, like in UNet(WIDTH, REGION).state_dict().items():
        stem, _, leaf = name.rpartition(".")
        head, _, number = stem.rpartition(".")
        before = f"{head}.{int(number) - 1}.bias" if number.isdigit() else ""
        if name in net_state and leaf == "weight" and like.shape == net_state[name].shape:
            out[name] = net_state[name]
        elif leaf == "bias" and before in net_state and f"{head}.conv" not in stem:
            out[name] = net_state[before]
        elif name in net_state:
            out[name] = net_state[name]
        elif leaf == "weight":
            out[name] = torch.ones_like(like)
        elif leaf == "running_var":
            out[name] = torch.full_like(like, 1 - NORM_EPSILON)
        else:
            out[name] = torch.zeros_like(like)
    return out


def reference_network(net_state: dict[str, Tensor]) -> UNet:
    """A network of the family, for inference, with the weights of the normless one."""
    net = UNet(WIDTH, REGION).eval()
    net.load_state_dict(reference_state(net_state))
    return net


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


def upsample_window(
    x: Tensor, size: int, start: tuple[int, int], box: tuple[int, int, int, int]
) -> Tensor:
    """Rows and columns of the x2 bilinear upsampling (corners aligned) of a size x size map.

    ``x`` holds the map from (row, column) ``start`` on; ``box`` is y0, x0, y1, x1 of the result.
    """
    y0, x0, y1, x1 = box
    for axis, low, high, first in ((2, y0, y1, start[0]), (3, x0, x1, start[1])):
        position = torch.arange(low, high, dtype=torch.float64) * (size - 1) / (2 * size - 1)
        left = position.floor().clamp(max=size - 2)
        part = (position - left).to(x.dtype)
        part = part[:, None] if axis == 2 else part
        index = left.long() - first
        x = x.index_select(axis, index) * (1 - part) + x.index_select(axis, index + 1) * part
    return x


def decode_window(
    net: UNet, levels: tuple[Tensor, ...], audio: Tensor, top: int, left: int
) -> tuple[Tensor, Tensor]:
    """The audio half and the decoder of a normless network, in a window of the region.

    Args:
        net: The network.
        levels: What ``net.encode_image`` returned for B pictures.
        audio: Audio blocks, B x 32 x 16 x 16.
        top, left: Where the window begins in the region.

    Returns:
        The generated window (B x 3 x WINDOW_H x WINDOW_W, 0..1) and the audio branch's output.
    """
    full, half, quarter, eighth, sixteenth, deepest = levels
    heard = net.audio_model(audio)
    x = net.fuse_conv(torch.cat([deepest, heard], 1))
    x = net.up3(net.up2(net.up1(x, sixteenth), eighth), quarter)
    side = REGION // 2
    bottom, right = top + WINDOW_H, left + WINDOW_W
    # The last stage's 3 x 3 convolutions look beyond the window: keep 5 rows around it.
    y0, x0 = max(0, top // 2 - 5), max(0, left // 2 - 5)
    y1, x1 = min(side, bottom // 2 + 5), min(side, right // 2 + 5)
    up = upsample_window(x, REGION // 4, (0, 0), (y0, x0, y1, x1))
    x = net.up4.conv(torch.cat([up, half[:, :, y0:y1, x0:x1]], 1))
    up = upsample_window(x, side, (y0, x0), (top, left, bottom, right))
    x = net.up5.conv(torch.cat([up, full[:, :, top:bottom, left:right]], 1))
    return torch.sigmoid(net.outc(x).float()), heard
