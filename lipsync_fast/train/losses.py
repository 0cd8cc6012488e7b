# SPDX-License-Identifier: Apache-2.0
"""What a made picture is compared by.

SyncTalk_2D's training adds three terms: the mean absolute difference of the pixels; a hundredth of
the mean squared difference between what the 14th layer (conv3_3, before its ReLU) of an
image-classifying VGG19 says of both pictures, which go into it as they are, 0..1; and, by option,
how badly a sync network thinks that picture and sound belong together (``sync``).

The classifier's weights are used where the user has them already, and never fetched.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from lipsync_fast import places
from lipsync_fast.errors import CheckpointError
from lipsync_fast.models.checkpoints import load_state

PERCEPTUAL_WEIGHT = 0.01
VGG_FILES = "vgg19-*.pth"
_LAYERS: tuple[int | str, ...] = (64, 64, "pool", 128, 128, "pool", 256, 256, 256)
"""Channels of VGG19's convolutions up to conv3_3, and where it halves the picture."""
_CHUNK = 1 << 20
_LEAST_DETAIL = 1e-6
"""A quarter of a grey level, squared: so that a root has a slope."""

Rows = tuple[int, int, int, int]
"""Part of the region: top, bottom, left, right in pixels."""


def mouth(region: int) -> Rows:
    """Where in a region of that size the mouth is, generously.

    The crop is as wide as the face and begins between the eyes, so a mouth is in its middle.
    """
    return region * 3 // 16, region * 3 // 4, region * 3 // 16, region * 13 // 16


def pixel_loss(made: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, 0..1."""
    return functional.l1_loss(made, target)


def weighted_loss(error: Tensor, weight: Tensor, slopes: float) -> Tensor:
    """Mean of an error and, ``slopes`` times, of its differences between neighbours.

    Args:
        error: B x 3 x H x W.
        weight: B x 1 x H x W, of an error there.
    """
    loss = (error.abs() * weight).mean()
    for dim in (2, 3):
        slope = torch.diff(error, dim=dim).abs()
        part = weight[:, :, : slope.shape[2], : slope.shape[3]]
        loss = loss + slopes * (slope * part).mean()
    return loss


def texture_loss(made: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean error of how strong fine detail is around each place, wherever exactly it lies.

    Where a network is not sure of a place, an error of pixels is smallest for a picture that is
    soft; this one for a picture that is as rich as the target. Detail is what a mean of 5 x 5 takes
    away, its strength the root of its mean square over 7 x 7.

    Args:
        made: B x 3 x H x W in 0..1.
        target: the same.
        weight: B x 1 x H x W, of an error there.
    """
    apart = detail_strength(made) - detail_strength(target)
    return (apart.abs() * weight).mean()


def detail_strength(picture: Tensor) -> Tensor:
    """How strong fine detail is around each place: B x 3 x H x W to B x 1 x H x W, in 0..1."""
    grey = picture.mean(1, keepdim=True)
    detail = grey - functional.avg_pool2d(grey, 5, 1, 2, count_include_pad=False)
    square = functional.avg_pool2d(detail**2, 7, 1, 3, count_include_pad=False)
    return (square + _LEAST_DETAIL).sqrt()


class Perceptual(nn.Module):
    """Mean squared difference of VGG19's features of two pictures, B x 3 x H x W in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for what in _LAYERS:
            if isinstance(what, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(inputs, what, 3, padding=1), nn.ReLU()]
            inputs = what
        self.features = nn.Sequential(*layers[:-1])
        self.requires_grad_(False)

    def forward(self, made: Tensor, target: Tensor) -> Tensor:
        """A number."""
        with torch.no_grad():
            wanted = self.features(target)
        return functional.mse_loss(self.features(made), wanted)


def find_vgg() -> Path | None:
    """VGG19's weights in torch's cache (TORCH_HOME), as torchvision would have put them there."""
    cache, given = places.cache_folder(), os.environ.get("TORCH_HOME", "")
    if given:
        folder = Path(os.path.expanduser(given))  # as torch does
    elif cache is not None:
        folder = cache / "torch"
    else:
        return None
    found = sorted((folder / "hub" / "checkpoints").glob(VGG_FILES))
    return found[0] if found else None


def load_perceptual(path: Path) -> Perceptual:
    """The loss, with VGG19's weights of a file.

    Raises:
        CheckpointError: the file is no such thing.
    """
    state = load_state(path)
    loss = Perceptual()
    wanted = loss.state_dict()
    for name, tensor in wanted.items():
        if name not in state or state[name].shape != tensor.shape:
            have = tuple(state[name].shape) if name in state else "missing"
            raise CheckpointError(
                f"{path}: not VGG19's weights: {name} is {have}, expected {tuple(tensor.shape)}"
            )
    loss.load_state_dict({name: state[name].float() for name in wanted})
    return loss.eval()


def file_hash(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        CheckpointError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()
