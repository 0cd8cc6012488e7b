# SPDX-License-Identifier: Apache-2.0
"""An avatar's networks on a device, with a captured graph for each size of a batch.

Graphs read and write static memory. It is the same for all sizes (each uses the first rows of it)
and for all avatars of one shape; batches go through it one after the other, on one stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.cuda.device import Device
from lipsync_fast.engine.backends.cuda.graph_net import GraphNet, Shape
from lipsync_fast.errors import AvatarFormatError, UnexpectedGraphError

MEL_SHAPE: Shape = (1, 80, 16)
IMAGE_SIZES = (1, 4)
"""Batches of the image half: each frame of an avatar goes through it once."""


def rows_of(shape: Shape, dtype: torch.dtype) -> int:
    """Bytes of one row."""
    return math.prod(shape) * dtype.itemsize


def row_memory(count: int, shape: Shape, dtype: torch.dtype, where: torch.device) -> Tensor:
    """Zeros for rows that are gathered and scattered as a whole: count x words, of eight bytes
    where that comes out even, for it is done word by word."""
    made = torch.zeros(count, math.prod(shape), dtype=dtype, device=where)
    return made if rows_of(shape, dtype) % 8 else made.view(torch.int64)


class Rows:
    """Static memory for a batch: a row for each frame, channels last.

    Attributes:
        words: as ``row_memory`` gives it.
        seen: the same memory as rows x C x H x W.
    """

    def __init__(self, count: int, shape: Shape, dtype: torch.dtype, where: torch.device) -> None:
        self.words = row_memory(count, shape, dtype, where)
        self.seen = as_images(self.words.view(dtype), shape)


def as_images(flat: Tensor, shape: Shape) -> Tensor:
    """Rows of numbers as rows x C x H x W with the channels last."""
    channels, height, width = shape
    return flat.view(-1, height, width, channels).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Statics:
    """The static memory of the networks of one shape.

    Attributes:
        levels, audio, region: of the decoder; the audio lies channels first, as blocks come; the
            region is float32.
        image, made: of the image half.
    """

    levels: dict[str, Rows]
    audio: Tensor
    region: Tensor
    image: Tensor
    made: dict[str, Rows]

    @classmethod
    def make(
        cls,
        shapes: Mapping[str, Shape],
        region: int,
        audio: Shape,
        out: Shape,
        most: int,
        dtype: torch.dtype,
        where: torch.device,
    ) -> Statics:
        """For batches of up to ``most`` frames."""
        few = max(IMAGE_SIZES)
        image = torch.zeros(few, 6, region, region, dtype=dtype, device=where)
        return cls(
            {name: Rows(most, shape, dtype, where) for name, shape in shapes.items()},
            torch.zeros(most, *audio, dtype=dtype, device=where),
            torch.zeros(most, *out, dtype=torch.float32, device=where),
            image.contiguous(memory_format=torch.channels_last),
            {name: Rows(few, shape, dtype, where) for name, shape in shapes.items()},
        )


@dataclass
class Sized:
    """A network and its graphs.

    Attributes:
        net: on the device.
        inputs, outputs: static memory, in the network's order.
        sizes: all that there are to be.
        graphs: those that there are, by size; another thread may add one at any time.
    """

    device: Device
    net: GraphNet
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    sizes: Sequence[int]
    graphs: dict[int, Callable[[], object]] = field(default_factory=dict)

    @property
    def ready(self) -> tuple[int, ...]:
        """Sizes that can be run."""
        return tuple(self.graphs)

    def run(self, size: int) -> None:
        """From the first rows of the inputs to those of the outputs."""
        self.graphs[size]()

    def eager(self, size: int) -> None:
        """The same without a graph."""
        with torch.inference_mode():
            made = self.net(*(given[:size] for given in self.inputs))
            for out, value in zip(self.outputs, made, strict=True):
                out[:size].copy_(value)

    def capture(self, size: int) -> None:
        """Make the graph of a size; in any thread.

        Raises:
            RuntimeError: it cannot be captured.
        """
        if size in self.graphs:
            return
        inputs = [torch.zeros_like(given[:size]) for given in self.inputs]

        def warm() -> None:
            with torch.inference_mode():
                self.net(*inputs)

        self.graphs[size] = self.device.capture(warm, lambda: self.eager(size))


def read_net(
    package: AvatarPackage, name: str, given: Mapping[str, Shape], made: Mapping[str, Shape]
) -> GraphNet:
    """A network of a package, still on the host.

    Raises:
        AvatarFormatError: it is damaged, or does not fit the manifest.
    """
    data = package.network(name)
    try:
        net = GraphNet(data)
        found = net.shapes(given)
    except UnexpectedGraphError as error:
        raise AvatarFormatError(f"{package.path}: {name}.onnx cannot be used: {error}") from None
    if found != dict(made):
        raise AvatarFormatError(
            f"{package.path}: {name}.onnx does not fit the manifest: outputs are {found},"
            f" expected {dict(made)}"
        )
    return net


def on_device(net: GraphNet, device: Device, dtype: torch.dtype) -> GraphNet:
    """Its weights on a device, in a precision, channels last."""
    return net.to(device.where, dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def decoder_of(net: GraphNet, statics: Statics, device: Device, sizes: Sequence[int]) -> Sized:
    """The decoder with its static memory."""
    inputs = [
        statics.audio if name == "audio" else statics.levels[name].seen for name in net.inputs
    ]
    return Sized(device, net, inputs, [statics.region], sizes)


def image_of(net: GraphNet, statics: Statics, device: Device) -> Sized:
    """The image half with its static memory."""
    outputs = [statics.made[name].seen for name in net.outputs]
    return Sized(device, net, [statics.image], outputs, IMAGE_SIZES)
