# SPDX-License-Identifier: Apache-2.0
"""Read a network's weights out of an ONNX file; nothing in it is run (torch, extra ``train``).

Exporters rename weights, drop those that are equal, and fold batch norms into convolutions or do
not. What stays is the structure. So both graphs are gone through in their order, the file's and
that of the family's torch module, and each value gets a number by how it is made: from which
numbers, by which operation, with which shapes and strides. A convolution of the file belongs where
the module has one of the same number; a file that has anything else is refused, and told where.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.fx
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lipsync_fast.errors import AvatarImportError, CheckpointError, UnexpectedGraphError
from lipsync_fast.models.checkpoints import fit
from lipsync_fast.models.unet import AUDIO_CHANNELS, UNet
from lipsync_fast.onnx_io.reader import Graph, Node, attribute_field
from lipsync_fast.onnx_io.writer import EPSILON
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.files import read_file
from lipsync_fast.untrusted.lookalikes import ONNX, what_lies_at

IMAGE_CHANNELS = 6
OLDEST_OPSET = 11
"""From here on ``Resize`` means what it means now."""
_SAME = ("Identity", "Cast", "Dropout")
"""Operators that give on what they get."""
Array = NDArray[np.float32]


class _RefusedError(Exception):
    """The file holds another network; the message says where it differs."""


class _Conv(NamedTuple):
    """What a convolution is, but for its numbers."""

    source: int
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int

    def __str__(self) -> str:
        sides = "x".join(map(str, self.weight))
        return f"weights {sides}, strides {self.stride}, pads {self.pads}, groups {self.groups}"


@dataclass(slots=True)
class _Layer:
    """A convolution of the module, and the batch norm behind it; then what the file has for it."""

    conv: str
    norm: str = ""
    has_bias: bool = False
    weight: Array | None = None
    bias: Array | None = None
    stats: tuple[Array, ...] | None = None
    """What the file has of a batch norm, too: weight, bias, mean, and variance + epsilon."""


@dataclass(slots=True)
class _Structure:
    """The module's graph: a number for each value, its convolutions."""

    numbers: dict[Hashable, int] = field(default_factory=dict)
    layers: dict[int, _Layer] = field(default_factory=dict)
    output: int = -1

    def number(self, key: Hashable) -> int:
        return self.numbers.setdefault(key, len(self.numbers))

    @classmethod
    def of(cls, model: nn.Module) -> _Structure:
        """The graph of a module.

        It is made of convolutions, batch norms, ReLU, sums, concatenations and upsampling.
        """
        found, values = cls(), dict[torch.fx.Node, int]()
        traced = torch.fx.symbolic_trace(model)
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                values[node] = found.number(("input", len(values)))
            elif node.op == "output":
                found.output = values[node.args[0]]
            else:
                values[node] = found._made(traced, node, values)
        return found

    def _made(
        self, traced: torch.fx.GraphModule, node: torch.fx.Node, values: Mapping[Any, int]
    ) -> int:
        made: Any = node.target
        first: Any = node.args[0]
        if node.op == "call_module":
            made = traced.get_submodule(str(node.target))
        if isinstance(made, nn.Conv2d):
            pads = tuple(int(n) for n in made.padding)
            number = self.number(
                _Conv(values[first], tuple(made.weight.shape), made.stride, pads * 2, made.groups)
            )
            assert number not in self.layers, "two convolutions that cannot be told apart"
            self.layers[number] = _Layer(str(node.target), has_bias=made.bias is not None)
            return number
        if isinstance(made, nn.BatchNorm2d):
            self.layers[values[first]].norm = str(node.target)
            return values[first]
        if made is operator.add:
            return self.number(("Add", *sorted(values[a] for a in node.args)))
        if made is torch.cat:
            return self.number(("Concat", *(values[a] for a in first)))
        kinds = {torch.relu: "Relu", torch.sigmoid: "Sigmoid", functional.interpolate: "Resize"}
        kind = "Relu" if isinstance(made, nn.ReLU) else kinds[made]
        return self.number((kind, values[first]))

    def state(self) -> dict[str, Tensor]:
        """The state dict of the module, once every layer has its weights."""
        arrays: dict[str, Array] = {}
        for layer in self.layers.values():
            assert layer.weight is not None
            arrays[f"{layer.conv}.weight"] = layer.weight
            zeros = np.zeros(len(layer.weight), np.float32)
            bias = zeros if layer.bias is None else layer.bias
            if not layer.norm:
                arrays[f"{layer.conv}.bias"] = bias
                continue
            if layer.has_bias:
                arrays[f"{layer.conv}.bias"] = zeros
            # Folded: a batch norm that changes nothing but adds the bias.
            scale, shift, mean, spread = layer.stats or (zeros + 1, bias, zeros, zeros + 1)
            if layer.stats:
                mean = mean - bias
            arrays[f"{layer.norm}.weight"], arrays[f"{layer.norm}.bias"] = scale, shift
            arrays[f"{layer.norm}.running_mean"] = mean
            arrays[f"{layer.norm}.running_var"] = (spread - EPSILON).astype(np.float32)
        return {name: torch.from_numpy(np.array(a, np.float32)) for name, a in arrays.items()}


@dataclass(slots=True)
class _File:
    """A file's graph, held against a structure."""

    graph: Graph
    structure: _Structure
    values: dict[str, int]
    pending: dict[int, str] = field(default_factory=dict)

    def go_through(self) -> None:
        """Give every layer its weights.

        Raises:
            _RefusedError, UnexpectedGraphError: it is another network, or none that can be read.
        """
        for node in self.graph.nodes:
            number = self._made(node)
            if number is not None:
                self.values[node.outputs[0]] = number
        missing = [p.conv for p in self.structure.layers.values() if p.weight is None]
        if missing:
            raise _RefusedError(f"it has nothing for {missing[0]} and {len(missing) - 1} more")
        if self.structure.output not in [self.values.get(name) for name in self.graph.outputs]:
            raise _RefusedError("its output is not what the network ends with")

    def _made(self, node: Node) -> int | None:
        """The number of what a node makes; None for what is no part of the network's data."""
        kind, sources = node.kind, [self.values.get(name) for name in node.inputs]
        if not node.inputs or not node.outputs:
            return None
        if kind in _SAME:
            return sources[0]
        data = sources[:1] if kind in ("Conv", "BatchNormalization", "Resize", "Pad") else sources
        if kind in ("Shape", "Size") or all(number is None for number in data):
            return None
        known = [number for number in data if number is not None]
        if len(known) < len(data):
            raise _RefusedError(f"{_named(node)} takes something that the network does not have")
        if kind == "Conv":
            return self._conv(node, known[0])
        if kind == "BatchNormalization":
            return self._norm(node, known[0])
        if kind == "Pad":
            return self._padded(node, known[0])
        if kind == "Resize":
            self._check_resize(node)
        if kind == "Concat" and node.attributes.get("axis") not in (1, -3):
            raise _RefusedError(f"{_named(node)} does not join channels")
        key = (kind, *(sorted(known) if kind == "Add" else known))
        number = self.structure.numbers.get(key)
        if number is None:
            raise _RefusedError(f"{_named(node)}: the network has nothing like it there")
        return number

    def _conv(self, node: Node, source: int) -> int:
        weight = self._floats(node.inputs[1])
        if weight.ndim != 4 or node.attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise _RefusedError(f"{_named(node)} is not a plain 2-D convolution")
        if _list(node, "dilations", (1, 1)) != (1, 1):
            raise _RefusedError(f"{_named(node)} is dilated")
        (groups,) = _list(node, "group", (1,))
        strides, pads = _list(node, "strides", (1, 1)), _list(node, "pads", (0, 0, 0, 0))
        found = _Conv(source, weight.shape, strides, pads, groups)
        number = self.structure.numbers.get(found)
        if number is None:
            known = self.structure.numbers
            wanted = [str(key) for key in known if isinstance(key, _Conv) and key.source == source]
            expected = " or ".join(wanted) or "none there"
            raise _RefusedError(f"{_named(node)}: a convolution with {found}; expected {expected}")
        layer = self.structure.layers[number]
        if layer.weight is not None:
            raise _RefusedError(f"{_named(node)}: {layer.conv} is there twice")
        layer.weight = weight
        if len(node.inputs) > 2 and node.inputs[2]:
            layer.bias = self._floats(node.inputs[2], weight.shape[:1])
        return number

    def _norm(self, node: Node, source: int) -> int:
        layer = self.structure.layers.get(source)
        if layer is None or not layer.norm or layer.stats is not None or layer.weight is None:
            raise _RefusedError(f"{_named(node)}: a batch norm where the network has none")
        if len(node.inputs) != 5:
            raise _RefusedError(f"{_named(node)}: a batch norm without its statistics")
        shape = layer.weight.shape[:1]
        scale, shift, mean, variance = (self._floats(name, shape) for name in node.inputs[1:5])
        stored = attribute_field(node, "epsilon", 2)
        (epsilon,) = struct.unpack("<f", stored) if stored is not None else (EPSILON,)
        spread = variance.astype(np.float64) + epsilon
        if not np.all(spread > 0):
            raise _RefusedError(f"{_named(node)}: its variances are not all positive")
        layer.stats = scale, shift, mean, spread
        return source

    def _padded(self, node: Node, source: int) -> int:
        """Nothing is added: the reference pads what it upsamples to the skip's size, which it has.

        Sizes that are computed in the graph are not followed: whatever they are, both parts of the
        concatenation behind it are of one size, and the skip's is known.
        """
        amounts = self._list_of(node.inputs[1]) if len(node.inputs) > 1 else [1]
        if any(amounts or ()):
            raise _RefusedError(f"{_named(node)} adds {amounts}; expected a network without it")
        return source

    def _check_resize(self, node: Node) -> None:
        mode = node.attributes.get("mode"), node.attributes.get("coordinate_transformation_mode")
        if mode != (b"linear", b"align_corners"):
            raise _RefusedError(f"{_named(node)}: expected bilinear with corners aligned")
        scales = self._list_of(node.inputs[2]) if len(node.inputs) > 2 else None
        if scales and scales != [1, 1, 2, 2]:
            raise _RefusedError(f"{_named(node)}: scales of {scales}, expected 1, 1, 2, 2")

    def _list_of(self, name: str) -> list[float] | None:
        """A small constant's values; None for what is computed in the graph."""
        if name not in self.graph.tensors:
            return None
        values = self.graph.tensor(name)
        if values.size > 16:
            raise _RefusedError(f"{name[:40]!r} has {values.size} numbers, expected a few")
        return [float(v) for v in values.ravel()]

    def _floats(self, name: str, shape: tuple[int, ...] | None = None) -> Array:
        values = self.graph.tensor(name)
        if values.dtype.kind != "f" or (shape is not None and values.shape != shape):
            raise _RefusedError(
                f"constant {name[:40]!r} is {values.dtype} of shape {values.shape}, expected"
                f" floating-point numbers{'' if shape is None else f' of shape {shape}'}"
            )
        if not np.isfinite(values).all():
            raise _RefusedError(f"constant {name[:40]!r} holds numbers that are not finite")
        return values.astype(np.float32)


def _named(node: Node) -> str:
    return f"operator {node.kind[:40]} ({node.outputs[0][:60]!r})"


def _list(node: Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = node.attributes.get(name, default)
    value = (value,) if isinstance(value, int) else value
    if not isinstance(value, tuple) or len(value) != len(default):
        raise _RefusedError(f"{_named(node)}: its {name} cannot be read")
    return value


def _parsed(path: Path) -> Graph:
    """The graph, with constants under every name that they have in it."""
    try:
        data = read_file(path, "an ONNX network", limits.NETWORK_BYTES)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except AvatarImportError as error:
        raise CheckpointError(str(error)) from None
    graph = Graph.parse(data)
    if graph.unusual:
        raise _RefusedError(f"{graph.unusual[0]}; expected one graph of operators and constants")
    versions = [version for domain, version in graph.opsets if domain in ("", "ai.onnx")]
    if not versions or min(versions) < OLDEST_OPSET:
        raise _RefusedError(f"operators of versions {versions}, expected {OLDEST_OPSET} or newer")
    for node in graph.nodes:
        if node.kind in _SAME and node.inputs and node.inputs[0] in graph.tensors:
            graph.tensors[node.outputs[0]] = graph.tensors[node.inputs[0]]
        elif node.kind == "Constant" and node.outputs:
            value = attribute_field(node, "value", 5)
            if value is not None:
                graph.tensors[node.outputs[0]] = value
    return graph


def _input(graph: Graph, channels: int, word: str) -> tuple[str, tuple[int, ...]]:
    """The name and shape of the input with so many channels; of an open shape, by its name."""
    found = []
    for name in graph.inputs:
        shape = graph.input_shape(name) if name not in graph.tensors else ()
        if len(shape) == 4 and (shape[1] == channels or (shape[1] == 1 and (word in name))):
            found.append((name, shape))
    if len(found) != 1:
        names = ", ".join(repr(name[:40]) for name in list(graph.inputs)[:5])
        raise _RefusedError(
            f"{len(found)} inputs of {channels} channels, expected one (inputs: {names})"
        )
    return found[0]


def _width(graph: Graph) -> int:
    """The base width: the last convolution has half of it as input."""
    makers = {node.outputs[0]: node for node in graph.nodes if node.outputs}
    for node in graph.nodes:
        if node.kind == "Sigmoid" and node.outputs and node.outputs[0] in graph.outputs:
            last = makers.get(node.inputs[0]) if node.inputs else None
            if last is not None and last.kind == "Conv" and len(last.inputs) > 1:
                shape = graph.tensor(last.inputs[1]).shape
                if len(shape) == 4 and shape[0] == 3 and shape[2:] == (1, 1):
                    return 2 * int(shape[1])
    raise _RefusedError("it does not end with a convolution to 3 channels and a sigmoid")


def load_unet_onnx(path: Path) -> UNet:
    """A U-Net of the family with the weights of an ONNX file of it, batch norms folded or not.

    Width and region are read off the file; a region that it leaves open is taken as 320.

    Raises:
        CheckpointError: unreadable, too large, with weights elsewhere, or of another structure.
    """

    def make(graph: Graph) -> tuple[Callable[[], UNet], list[str]]:
        image, shape = _input(graph, IMAGE_CHANNELS, "input")
        audio, _ = _input(graph, AUDIO_CHANNELS, "audio")
        width, side = _width(graph), max(shape[2:])
        region = 320 if side == 1 else side
        if not 2 <= width <= 256 or not 224 <= region <= 1024 or region % 32:
            raise _RefusedError(f"base width {width} and region {region} are not the family's")
        return (lambda: UNet(width, region)), [image, audio]

    try:
        graph = _parsed(path)
        module, inputs = make(graph)
        with torch.device("meta"):
            structure = _Structure.of(module())
        values = {name: structure.numbers["input", k] for k, name in enumerate(inputs)}
        _File(graph, structure, values).go_through()
    except (_RefusedError, UnexpectedGraphError) as error:
        reason = "".join(c if c.isprintable() else "?" for c in str(error))[:400]
        known = what_lies_at(path)
        if known and known != ONNX:
            reason = f"it is {known}"
        raise CheckpointError(f"{path}: refused as a checkpoint: {reason}") from None
    return fit(path, structure.state(), module)
