# SPDX-License-Identifier: Apache-2.0
"""The SyncTalk_2D U-Net with base width and region size as parameters (torch, extra ``train``).

Width 32 at region 320 is the reference (``unet_328``, "ave"): 12,186,935 parameters. The image
half (``encode_image``) knows nothing of the audio, so callers may compute it once per frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

AUDIO_CHANNELS = 32


def bottleneck_padding(region: int) -> int:
    """Padding of the audio branch's strided convolution, so that it meets the image half.

    Raises:
        ValueError: ``region`` is not a multiple of 32, or below 224.
    """
    if region % 32 or region < 224:
        raise ValueError(f"region size {region}: expected a multiple of 32, 224 or more")
    return region // 32 - 7


class InvertedResidual(nn.Module):
    """1x1 expand x2, 3x3 depthwise, 1x1 project, a batch norm after each; optionally + input."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        hidden = inputs * 2
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """``B x C x H x W`` to ``B x C' x H/stride x W/stride``."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class DoubleConv(nn.Module):
    """A non-residual block followed by a residual one."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            InvertedResidual(inputs, outputs, stride),
            InvertedResidual(outputs, outputs, 1, residual=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``B x C x H x W`` to ``B x C' x H/stride x W/stride``."""
        y: Tensor = self.double_conv(x)
        return y


class InputConv(nn.Module):
    """The first block, six channels to the base width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inconv = nn.Sequential(InvertedResidual(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``B x 6 x R x R`` to ``B x W x R x R``."""
        y: Tensor = self.inconv(x)
        return y


class Down(nn.Module):
    """A double block whose first convolution halves the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(DoubleConv(inputs, outputs, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """``B x C x H x W`` to ``B x C' x H/2 x W/2``."""
        y: Tensor = self.maxpool_conv(x)
        return y


class Up(nn.Module):
    """Bilinear x2 (corners aligned), the skip appended, a double block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = DoubleConv(inputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``x``: B x C x H x W, ``skip``: B x S x 2H x 2W; gives B x C' x 2H x 2W."""
        up = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        y: Tensor = self.conv(torch.cat([up, skip], dim=1))
        return y


class OutConv(nn.Module):
    """1x1 convolution to three channels."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``B x C x R x R`` to ``B x 3 x R x R`` (before the sigmoid)."""
        y: Tensor = self.conv(x)
        return y


class AudioBranch(nn.Module):
    """Audio block ``B x 32 x 16 x 16`` to ``B x 16W x R/32 x R/32``."""

    def __init__(self, width: int, region: int) -> None:
        super().__init__()
        c = [2 * width, 4 * width, 8 * width, 16 * width]
        self.conv1 = InvertedResidual(AUDIO_CHANNELS, c[0])
        self.conv2 = InvertedResidual(c[0], c[1])
        self.conv3 = nn.Conv2d(c[1], c[2], 3, padding=1)
        self.bn3 = nn.BatchNorm2d(c[2])
        self.conv4 = InvertedResidual(c[2], c[2], residual=True)
        self.conv5 = nn.Conv2d(c[2], c[3], 3, stride=2, padding=bottleneck_padding(region))
        self.bn5 = nn.BatchNorm2d(c[3])
        self.conv6 = InvertedResidual(c[3], c[3], residual=True)
        self.conv7 = InvertedResidual(c[3], c[3], residual=True)

    def forward(self, x: Tensor) -> Tensor:
        """``B x 32 x 16 x 16`` to ``B x 16W x R/32 x R/32``."""
        x = self.conv2(self.conv1(x))
        x = self.conv4(torch.relu(self.bn3(self.conv3(x))))
        x = torch.relu(self.bn5(self.conv5(x)))
        y: Tensor = self.conv7(self.conv6(x))
        return y


class UNet(nn.Module):
    """Image ``B x 6 x R x R`` and audio ``B x 32 x 16 x 16`` to the region ``B x 3 x R x R``.

    Args:
        width: base channels W (the reference: 32); the five levels have W, W, 2W, 4W, 8W, 16W.
        region: side R of the generated square in pixels (the reference: 320).

    Raises:
        ValueError: ``region`` is not a multiple of 32 from 224 up, or ``width`` is odd or below 2.
    """

    def __init__(self, width: int = 32, region: int = 320) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"base width {width}: expected an even number, 2 or more")
        w = width
        self.width, self.region = width, region
        self.audio_model = AudioBranch(w, region)
        self.fuse_conv = nn.Sequential(
            DoubleConv(32 * w, 16 * w),
            DoubleConv(16 * w, 8 * w),
        )
        self.inc = InputConv(6, w)
        self.down1 = Down(w, w)
        self.down2 = Down(w, 2 * w)
        self.down3 = Down(2 * w, 4 * w)
        self.down4 = Down(4 * w, 8 * w)
        self.down5 = Down(8 * w, 16 * w)
        self.up1 = Up(16 * w, 4 * w)
        self.up2 = Up(8 * w, 2 * w)
        self.up3 = Up(4 * w, w)
        self.up4 = Up(2 * w, w)
        self.up5 = Up(2 * w, w // 2)
        self.outc = OutConv(w // 2)

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        """The six levels x1..x6 of the image half; they depend on the avatar's frame alone."""
        levels = [self.inc(image)]
        for down in (self.down1, self.down2, self.down3, self.down4, self.down5):
            levels.append(down(levels[-1]))
        return tuple(levels)

    def decode(self, levels: tuple[Tensor, ...], audio: Tensor) -> Tensor:
        """Levels of ``encode_image`` and audio ``B x 32 x 16 x 16`` to ``B x 3 x R x R``."""
        x1, x2, x3, x4, x5, x6 = levels
        x = self.fuse_conv(torch.cat([x6, self.audio_model(audio)], dim=1))
        for up, skip in (
            (self.up1, x5),
            (self.up2, x4),
            (self.up3, x3),
            (self.up4, x2),
            (self.up5, x1),
        ):
            x = up(x, skip)
        return torch.sigmoid(self.outc(x))

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """Region as BGR in 0..1, float32."""
        return self.decode(self.encode_image(image), audio)
