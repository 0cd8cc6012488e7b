# SPDX-License-Identifier: Apache-2.0
"""The U-Net as it is trained on few frames: with fewer norms, decoded only in a window (torch).

A batch norm needs large batches and many of them. Where there is none, each convolution has a bias
in its place; ``reference_state`` gives the weights back in the family's form, with norms there that
change nothing. The two last stages, most of the work, run only on the window that is shown.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lipsync_fast.geometry import Rect
from lipsync_fast.models.unet import AudioBranch, DoubleConv, InvertedResidual, UNet

NORM_EPSILON = 1e-5
"""What a batch norm adds to the variance."""
_LOGIT, _BENDS = 4.194, ((0.75, 0.754), (0.93, 5.629))
"""The logit of y, of 0..1, is close to _LOGIT times y - 0.5 plus, for each bend (at, rise), rise
times relu(y - at) - relu(1 - at - y): what comes out of the sigmoid is off by 0.004 in the mean, by
0.015 at most (fitted by least squares there); without bends by 0.024 and 0.078."""
_MARGIN = 5
"""Rows around the window that its convolutions see in the stage before."""
_LITTLE = 0.2
"""What a residual block adds at first, against what comes in."""
_OPEN = 2.0
"""Bias of a norm: what comes out of it is hardly ever negative, so that ReLU keeps it."""
_PAIRS = (0, 1), (3, 4), (6, 7)
"""An inverted residual's convolutions and the norms behind them."""


def new_network(width: int, region: int) -> UNet:
    """An untrained network without norms, which gives the picture back that it is shown."""
    net = without_norms(UNet(width, region))
    for module in net.modules():
        if isinstance(module, InvertedResidual):
            for conv, _ in _PAIRS:
                gain = 2.0 if conv != 6 else 0.2 if module.residual else 1.0
                _begin(module.conv[conv], gain)
    _begin(net.audio_model.conv3, 2.0)
    _begin(net.audio_model.conv5, 2.0)
    return _pass_picture_through(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def passing_network(width: int, region: int) -> UNet:
    """An untrained network that gives the picture back, with norms between its ends.

    Norms let it learn several times as fast; at its ends they would take the picture's light away.
    """
    net, ends = UNet(width, region), new_network(width, region)
    net.inc, net.up5, net.outc = ends.inc, ends.up5, ends.outc
    for module in net.modules():
        if isinstance(module, InvertedResidual) and isinstance(module.conv[1], nn.BatchNorm2d):
            for conv, _ in _PAIRS:
                nn.init.kaiming_normal_(module.conv[conv].weight, nonlinearity="relu")  # type: ignore[arg-type]
            if module.residual:
                nn.init.constant_(module.conv[7].weight, _LITTLE)  # type: ignore[arg-type]
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def without_norms(net: UNet) -> UNet:
    """Fold each batch norm, as it is for inference, into the convolution before it."""
    net.eval()
    for module in net.modules():
        if isinstance(module, InvertedResidual):
            for conv, norm in _PAIRS:
                module.conv[conv] = _fused(module.conv[conv], module.conv[norm])
                module.conv[norm] = nn.Identity()
    for number in ("3", "5"):
        branch = net.audio_model
        fused = _fused(getattr(branch, f"conv{number}"), getattr(branch, f"bn{number}"))
        setattr(branch, f"conv{number}", fused)
        setattr(branch, f"bn{number}", nn.Identity())
    return net


def _fused(conv: nn.Module, norm: nn.Module) -> nn.Conv2d:
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        raise TypeError("a network whose norms are folded already")
    fused = fuse_conv_bn_eval(conv, norm)
    return fused.requires_grad_(True)  # a new bias is taken for a constant otherwise


def _begin(conv: nn.Module, gain: float) -> None:
    """Random weights for the ReLU that follows, and no bias."""
    weight, bias = conv.weight, conv.bias
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        raise TypeError("a convolution without a bias")
    nn.init.normal_(weight, 0, math.sqrt(gain / weight[0].numel()))
    nn.init.zeros_(bias)


@torch.no_grad()
def _pass_picture_through(net: UNet) -> UNet:
    """Make an untrained network give back the unmasked picture, so that it only learns changes.

    The first block's channels 0..2 carry the picture (nothing in it is negative, so ReLU keeps
    it), the last stage takes them from the skip and bends them, and the output is close to its
    logit. Networks too narrow to have the channels to spare stay as they are.
    """
    if net.width < 8:
        return net
    _carry(net.inc.inconv[0], 0, 3)
    _carry(_double(net.up5.conv, 0), net.width, 3, _BENDS)
    _conv(_double(net.up5.conv, 1), 6).weight[:3] = 0
    net.outc.conv.weight *= 0.3
    net.outc.conv.weight[:, :3] = 0
    for k in range(3):
        net.outc.conv.weight[k, k] = _LOGIT
    assert net.outc.conv.bias is not None
    net.outc.conv.bias.fill_(-_LOGIT / 2)
    return net


def _carry(
    block: nn.Module, first: int, count: int, bends: tuple[tuple[float, float], ...] = ()
) -> None:
    """Have a block's first channels be so many of its inputs, bent where there is no norm."""
    expand, depthwise, project = (_conv(block, k) for k, _ in _PAIRS)
    used = count * (1 + 2 * len(bends))
    expand.weight[:used] = 0
    depthwise.weight[:used] = 0
    depthwise.weight[:used, 0, 1, 1] = 1
    project.weight[:count] = 0
    for k in range(count):
        expand.weight[k, first + k] = 1
        project.weight[k, k] = 1
        hidden = count + 2 * len(bends) * k
        for at, rise in bends:
            assert expand.bias is not None
            for sign in (1, -1):
                expand.weight[hidden, first + k] = sign
                expand.bias[hidden] = -at if sign > 0 else 1 - at
                project.weight[k, hidden] = sign * rise
                hidden += 1


@torch.no_grad()
def pass_sound_through(branch: AudioBranch, first: int, count: int) -> None:
    """Make an untrained audio half, with norms, listen to some of its input's channels above all.

    They come as they are to its strided convolution, half of whose channels see each square of
    2 x 2 of them. What is written into such channels place by place is there to be learnt from
    at once, in place of being found among all others first.

    Args:
        branch: the audio half; one that is too narrow for so many stays as it is.
        first, count: those channels.
    """
    if _conv(branch.conv1, 6).out_channels < 2 * count:
        return
    for block, begins in ((branch.conv1, first), (branch.conv2, 0)):
        _carry(block, begins, count)
        for _, norm in _PAIRS[:2]:
            nn.init.constant_(_norm(block, norm).bias[:count], _OPEN)
    branch.conv3.weight[:count] = 0
    for k in range(count):
        branch.conv3.weight[k, k, 1, 1] = 1
    nn.init.constant_(branch.bn3.bias[:count], _OPEN)
    seeing = branch.conv5.out_channels // 2
    branch.conv5.weight[:seeing] *= _LITTLE
    nn.init.normal_(branch.conv5.weight[:seeing, :count, 1:, 1:], 0, 0.5)


def _double(block: DoubleConv, number: int) -> nn.Module:
    return block.double_conv[number]


def _conv(block: nn.Module, number: int) -> nn.Conv2d:
    """One of an inverted residual's convolutions."""
    assert isinstance(block, InvertedResidual)
    conv = block.conv[number]
    assert isinstance(conv, nn.Conv2d)
    return conv


def _norm(block: nn.Module, number: int) -> nn.BatchNorm2d:
    """One of an inverted residual's norms."""
    assert isinstance(block, InvertedResidual)
    norm = block.conv[number]
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def reference_state(state: dict[str, Tensor], width: int, region: int) -> dict[str, Tensor]:
    """A normless network's weights under the family's names, with norms that change nothing.

    A norm's bias takes over the bias of the convolution before it; its weight is 1, its mean 0,
    and its variance such that it divides by 1.
    """
    out: dict[str, Tensor] = {}
    for name, like in UNet(width, region).state_dict().items():
        stem, _, leaf = name.rpartition(".")
        head, _, number = stem.rpartition(".")
        if name in state:
            out[name] = state[name]
        elif leaf == "bias" and number.isdigit():
            out[name] = state[f"{head}.{int(number) - 1}.bias"]
        else:
            out[name] = _idle(leaf, like)
    return out


def _idle(leaf: str, like: Tensor) -> Tensor:
    """What a norm that changes nothing has under a name."""
    match leaf:
        case "weight":
            return torch.ones_like(like)
        case "running_var":
            return torch.full_like(like, 1 - NORM_EPSILON)
        case _:
            return torch.zeros_like(like)


def reference_network(state: dict[str, Tensor], width: int, region: int) -> UNet:
    """The family's network, for inference, with a normless one's weights."""
    net = UNet(width, region).eval()
    net.load_state_dict(reference_state(state, width, region))
    return net


def decode_window(net: UNet, levels: tuple[Tensor, ...], heard: Tensor, window: Rect) -> Tensor:
    """The decoder of a network whose last stage has no norms, in a window of the region.

    Args:
        net: the network.
        levels: what ``net.encode_image`` returned for B pictures.
        heard: what ``net.audio_model`` returned, or what takes its place: B x 16W x R/32 x R/32.
        window: in pixels of the region.

    Returns:
        The window, B x 3 x H x W in 0..1. In the outermost three pixels it lacks context that the
        whole network has, but at the region's own edge.
    """
    full, half, quarter, eighth, sixteenth, deepest = levels
    x = net.fuse_conv(torch.cat([deepest, heard], 1))
    x = net.up3(net.up2(net.up1(x, sixteenth), eighth), quarter)
    side = net.region // 2
    left, top, right, bottom = window.corners
    y0, x0 = max(0, top // 2 - _MARGIN), max(0, left // 2 - _MARGIN)
    y1, x1 = min(side, bottom // 2 + _MARGIN), min(side, right // 2 + _MARGIN)
    up = upsample_window(x, side // 2, (0, 0), (y0, x0, y1, x1))
    x = net.up4.conv(torch.cat([up, half[:, :, y0:y1, x0:x1]], 1))
    up = upsample_window(x, side, (y0, x0), (top, left, bottom, right))
    x = net.up5.conv(torch.cat([up, full[:, :, top:bottom, left:right]], 1))
    return torch.sigmoid(net.outc(x).float())


def upsample_window(
    x: Tensor, size: int, start: tuple[int, int], box: tuple[int, int, int, int]
) -> Tensor:
    """Rows and columns of the x2 bilinear upsampling (corners aligned) of a size x size map.

    Args:
        x: B x C x h x w, the map from (row, column) ``start`` on.
        size: the whole map's.
        start: see ``x``.
        box: y0, x0, y1, x1 of the result.

    Returns:
        B x C x (y1 - y0) x (x1 - x0). As matrix products over channels that lie last: three times
        as fast as picking rows and columns.
    """
    y0, x0, y1, x1 = box
    batch, channels, height, width = x.shape
    rows = _between(size, y0, y1, start[0], height).to(x)
    columns = _between(size, x0, x1, start[1], width).to(x)
    last = x.permute(0, 2, 3, 1)
    made = rows @ last.reshape(batch, height, width * channels)
    return (columns @ made.view(batch, y1 - y0, width, channels)).permute(0, 3, 1, 2)


def _between(size: int, low: int, high: int, first: int, count: int) -> Tensor:
    """Weights of ``count`` samples from ``first`` on for the upsampled samples low..high."""
    position = torch.arange(low, high, dtype=torch.float64) * (size - 1) / (2 * size - 1)
    left = position.floor().clamp(max=size - 2)
    part = position - left
    out = torch.zeros(high - low, count, dtype=torch.float64)
    at = torch.arange(high - low)
    out[at, left.long() - first] = 1 - part
    out[at, left.long() - first + 1] += part
    return out.float()
