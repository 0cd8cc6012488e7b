# SPDX-License-Identifier: Apache-2.0
"""An avatar on a device: its networks and what is kept of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from lipsync_fast.audio.windows import FEATURE_SIZE
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.cuda.device import Device, Fault
from lipsync_fast.engine.backends.cuda.graph_net import GraphNet, Shape
from lipsync_fast.engine.backends.cuda.graphs import SIZES
from lipsync_fast.engine.backends.cuda.images import Images
from lipsync_fast.engine.backends.cuda.nets import (
    MEL_SHAPE,
    Sized,
    Statics,
    decoder_of,
    image_of,
    on_device,
    read_net,
    rows_of,
)
from lipsync_fast.families import FAMILIES
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.engine")


@dataclass(frozen=True)
class Shapes:
    """What follows from a manifest; avatars of equal ones share static memory.

    Attributes:
        family, width: of the networks.
        region: side of the whole region.
        levels: x1 .., in order.
        made: channels, height and width of what the decoder makes.
    """

    family: str
    width: int
    region: int
    levels: tuple[tuple[str, Shape], ...]
    made: Shape

    @classmethod
    def of(cls, package: AvatarPackage) -> Shapes:
        """Those of an avatar."""
        m = package.manifest
        return cls(m.family, m.width, m.region, tuple(m.levels.items()), m.made)

    @property
    def audio(self) -> Shape:
        """The shape of the decoder's audio input."""
        return FAMILIES[self.family].audio_shape

    def frame_bytes(self, dtype: torch.dtype) -> int:
        """Roughly what a frame of a batch needs while it is made.

        Its levels twice, and what the decoder holds at its widest.
        """
        levels = sum(rows_of(shape, dtype) for _, shape in self.levels)
        peak = FAMILIES[self.family].peak(self.width, self.region)
        return 2 * levels + peak * dtype.itemsize


@dataclass(frozen=True)
class HostNets:
    """An avatar's networks as they are read, checked against the manifest."""

    audio_encoder: GraphNet
    image: GraphNet
    decoder: GraphNet

    @classmethod
    def read(cls, package: AvatarPackage, shapes: Shapes) -> HostNets:
        """Those of a package.

        Raises:
            AvatarFormatError: they are damaged, or do not fit the manifest.
        """
        levels = dict(shapes.levels)
        image = {"image": (6, shapes.region, shapes.region)}
        heard = {**levels, "audio": shapes.audio}
        return cls(
            read_net(package, "audio_encoder", {"mel": MEL_SHAPE}, {"feature": (FEATURE_SIZE,)}),
            read_net(package, "image", image, levels),
            read_net(package, "decoder", heard, {"region": shapes.made}),
        )


@dataclass(frozen=True)
class EncoderMemory:
    """Static memory of the audio encoders, the same for all avatars."""

    mel: torch.Tensor
    feature: torch.Tensor

    @classmethod
    def make(cls, most: int, dtype: torch.dtype, where: torch.device) -> EncoderMemory:
        """For up to ``most`` vectors at a time."""
        return cls(
            torch.zeros(most, *MEL_SHAPE, dtype=dtype, device=where),
            torch.zeros(most, FEATURE_SIZE, dtype=dtype, device=where),
        )


class CudaAvatar:
    """Made by ``CudaBackend.load``.

    Args:
        nets: read from the package.
        statics, encoder_memory: memory that graphs use; shared with other avatars.
        sizes: of batches of frames.
        images: with memory of the stream on which batches are made.

    Attributes:
        crop: side of the face crop.
        rule: how faces are cut out.
        vectors: that a frame sees.
        corner: left and top of what the decoder makes in it.
        made: channels, height and width of that.
        encoder, image, decoder: the networks.
        images: what is kept of its frames' image halves; for the thread that makes batches.
    """

    def __init__(
        self,
        package: AvatarPackage,
        device: Device,
        dtype: torch.dtype,
        nets: HostNets,
        statics: Statics,
        encoder_memory: EncoderMemory,
        sizes: Sequence[int],
        images: Images,
    ) -> None:
        self.package, self.statics = package, statics
        m = package.manifest
        shapes = Shapes.of(package)
        self.crop, self.rule, self.vectors = m.crop, m.crop_rule, m.audio.vectors
        self.corner, self.made = m.corner, shapes.made
        encoder, image, decoder = (
            on_device(net, device, dtype) for net in (nets.audio_encoder, nets.image, nets.decoder)
        )
        self.encoder = Sized(device, encoder, [encoder_memory.mel], [encoder_memory.feature], SIZES)
        self.image = image_of(image, statics, device)
        self.decoder = decoder_of(decoder, statics, device, sizes)
        self.images = images

    @property
    def networks(self) -> tuple[Sized, Sized, Sized]:
        """All three."""
        return self.encoder, self.image, self.decoder

    def capture_smallest(self) -> None:
        """Make what a first frame needs; where a graph cannot be captured, it runs without."""
        for network in self.networks:
            size = min(network.sizes)
            try:
                network.capture(size)
            except RuntimeError as error:
                if network.device.fault(error) is not Fault.OTHER:
                    raise
                log.warning("no graph", avatar=self.package.path, size=size, reason=str(error))
                network.graphs[size] = partial(network.eager, size)
