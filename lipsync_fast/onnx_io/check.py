# SPDX-License-Identifier: Apache-2.0
"""Whether a network from a stranger may be run: looked at before any runtime gets to see it.

Allowed are the operators that our families consist of, with constants that lie in the file itself.
Nothing may nest (subgraphs, functions), nothing may name a file. Every tensor's shape follows from
the inputs' and is computed here, so that memory and time are known beforehand, and bounded: by what
the family's own network of that size needs, where it is known whose it is.
Neither the package ``onnx`` nor a runtime is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.errors import AvatarFormatError, UnexpectedGraphError
from lipsync_fast.onnx_io.reader import Graph, Node
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.limits import BLOCK, Need

Shape = tuple[int, ...]
OPSETS = range(13, 24)
"""Versions of the operators whose meaning is the one computed here."""
_WEIGHTS = (np.float32, np.float16)
_FLOATS = (1, 10)
"""ONNX's numbers for these types."""


class _RefusedError(Exception):
    """The network may not be run; the message says why."""


def check_network(model: bytes | memoryview, where: str, need: Need | None = None) -> None:
    """Refuse a network that is not plain, not finite, or too large.

    Args:
        model: serialized ONNX.
        where: what it is called in errors.
        need: of the family's own network in its place; general limits where it is not known.

    Raises:
        AvatarFormatError: says which part was found, and what was expected.
    """
    if len(model) > limits.NETWORK_BYTES:
        raise AvatarFormatError(
            f"{where} has {len(model)} bytes, more than {limits.NETWORK_BYTES >> 20} MiB"
        )
    try:
        graph = Graph.parse(model)
        _check_model(graph)
        _Run(graph, _most(need)).check()
    except (UnexpectedGraphError, _RefusedError) as error:
        reason = "".join(c if c.isprintable() else "?" for c in str(error))[:300]
        raise AvatarFormatError(f"{where} cannot be used: {reason}") from None


def _check_model(graph: Graph) -> None:
    for domain, version in graph.opsets:
        if domain not in ("", "ai.onnx"):
            raise _RefusedError(f"operators of {domain[:80]!r}; expected those of ONNX alone")
        if version not in OPSETS:
            raise _RefusedError(
                f"operators of version {version}, expected {OPSETS[0]} to {OPSETS[-1]}"
            )
    if not graph.opsets:
        raise _RefusedError("no version of operators")
    if graph.unusual:
        raise _RefusedError(f"{graph.unusual[0]}; expected one graph of operators and constants")


ROOM = 2
"""Times what the family's own network needs: others may be written down in other ways."""
GENERAL = Need(
    tensor=limits.TENSOR_ELEMENTS,
    live=limits.LIVE_ELEMENTS,
    multiplications=limits.MULTIPLICATIONS,
    weights=limits.NETWORK_BYTES // 2,
)
"""What any network may need."""
FEW = 1 << 12
"""Numbers that may be made of constants whatever there are: sizes, scales."""


def _most(need: Need | None) -> Need:
    if need is None:
        return GENERAL
    return Need(*(min(ROOM * mine, any_) for mine, any_ in zip(need, GENERAL, strict=True)))


@dataclass
class _Run:
    """A run of a graph in which shapes take the place of tensors.

    Attributes:
        most: what it may need.
        live: numbers of all tensors that are there at this point of the run.
        fixed: tensors that follow from constants alone: a runtime makes them when it loads the
            graph, and keeps them.
    """

    graph: Graph
    most: Need
    shapes: dict[str, Shape] = field(default_factory=dict)
    live: int = 0
    multiplications: int = 0
    fixed: set[str] = field(default_factory=set)
    fixed_numbers: int = 0
    fixed_most: int = 0

    def check(self) -> None:
        """Go through the graph.

        Raises:
            _RefusedError, UnexpectedGraphError: it is not as it should be.
        """
        weights = 0
        for name in self.graph.tensors:
            self.shapes[name] = self._constant(name).shape
            weights += math.prod(self.shapes[name])
        if weights > self.most.weights:
            raise _RefusedError(f"{weights} weights; expected at most {self.most.weights}")
        self.fixed_most = max(weights, FEW)
        kept = self.graph.tensors.keys() | self.graph.outputs.keys()
        for name in self.graph.inputs:
            if name not in self.shapes:
                self.shapes[name] = self.graph.input_shape(name)
                self._count(self.shapes[name], f"input {name[:40]!r}")
        last = {name: k for k, node in enumerate(self.graph.nodes) for name in node.inputs}
        for k, node in enumerate(self.graph.nodes):
            self._step(node)
            done = {name for name in node.inputs if last[name] == k} & self.shapes.keys()
            self.live -= sum(_size(self.shapes[n]) for n in done - kept - self.fixed)
        for name in self.graph.outputs:
            if name not in self.shapes:
                raise _RefusedError(f"output {name[:40]!r} is made by no operator")

    def _constant(self, name: str) -> NDArray[np.generic]:
        values = self.graph.tensor(name)
        if values.dtype in _WEIGHTS and not np.isfinite(values).all():
            raise _RefusedError(f"constant {name[:40]!r} holds numbers that are not finite")
        return values

    def _step(self, node: Node) -> None:
        shape_of = _SHAPES.get(node.kind)
        if shape_of is None:
            raise _RefusedError(f"operator {node.kind[:40]!r}; expected {', '.join(_SHAPES)}")
        if node.unread:
            raise _RefusedError(
                f"operator {node.kind} with the attribute {min(node.unread)[:40]!r}"
            )
        if len(node.outputs) != 1 or node.outputs[0] in self.shapes or not node.outputs[0]:
            raise _RefusedError(f"operator {node.kind} that does not make one new tensor")
        try:
            shape = shape_of(self, node)
        except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
            raise _RefusedError(
                f"operator {node.kind} whose inputs or attributes do not fit"
            ) from None
        self.multiplications += math.prod(shape) * _COSTS.get(node.kind, 1)
        self.shapes[node.outputs[0]] = shape
        if all(name in self.graph.tensors or name in self.fixed for name in node.inputs if name):
            self._fix(node, shape)
        else:
            self._count(shape, f"what operator {node.kind} makes")

    def _fix(self, node: Node, shape: Shape) -> None:
        self.fixed.add(node.outputs[0])
        self.fixed_numbers += math.prod(shape)
        if not shape or min(shape) < 1 or self.fixed_numbers > self.fixed_most:
            raise _RefusedError(
                f"operator {node.kind} makes {shape} of constants; expected no more than there are"
                f" ({self.fixed_most} numbers)"
            )

    def _count(self, shape: Shape, what: str) -> None:
        if not shape or min(shape) < 1:
            raise _RefusedError(f"{what} has the shape {shape}")
        self.live += _size(shape)
        if _size(shape) > self.most.tensor or self.live > self.most.live:
            raise _RefusedError(
                f"{what} has the shape {shape}; expected at most {self.most.tensor} numbers,"
                f" and {self.most.live} at one time"
            )
        if self.multiplications > self.most.multiplications:
            raise _RefusedError(f"more than {self.most.multiplications} multiplications in one run")

    def borrow(self, count: int, what: str) -> None:
        """Memory that an operator needs while it runs."""
        if count > self.most.tensor or self.live + count > self.most.live:
            raise _RefusedError(
                f"{what} needs {count} numbers while it runs; expected at most"
                f" {self.most.tensor}, and {self.most.live} at one time"
            )

    def of(self, node: Node, index: int) -> Shape:
        """An input's shape."""
        return self.shapes[node.inputs[index]]

    def numbers(self, node: Node, index: int) -> list[float]:
        """A small constant input's values."""
        if node.inputs[index] not in self.graph.tensors:
            raise ValueError("no constant")
        values = self.graph.tensor(node.inputs[index])
        if values.ndim != 1 or values.size > 8:
            raise ValueError("no list of a few numbers")
        return [float(v) for v in values]


def _size(shape: Shape) -> int:
    """Numbers that a tensor has in memory."""
    if len(shape) != 4:
        return math.prod(shape)
    batch, channels, height, width = shape
    return batch * -(-channels // BLOCK) * BLOCK * height * width


def _attribute(node: Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = node.attributes.get(name, default)
    value = (value,) if isinstance(value, int) else value
    if not isinstance(value, tuple) or len(value) != len(default) or max(map(abs, value)) > 1 << 20:
        raise ValueError(name)
    return value


def _same(run: _Run, node: Node) -> Shape:
    if len(node.inputs) != 1:
        raise ValueError("inputs")
    return run.of(node, 0)


def _converted(run: _Run, node: Node) -> Shape:
    if node.attributes.get("to") not in _FLOATS:
        raise ValueError("no type of floating-point numbers")
    return _same(run, node)


def _broadcast(run: _Run, node: Node) -> Shape:
    a, b = run.of(node, 0), run.of(node, 1)
    if max(len(a), len(b)) > 8 or len(node.inputs) != 2:
        raise ValueError("too many")
    return np.broadcast_shapes(a, b)


def _concatenated(run: _Run, node: Node) -> Shape:
    parts = [run.of(node, k) for k in range(len(node.inputs))]
    axis = node.attributes["axis"]
    if not isinstance(axis, int) or not -len(parts[0]) <= axis < len(parts[0]):
        raise ValueError("axis")
    axis %= len(parts[0])
    rest = {(*part[:axis], *part[axis + 1 :]) for part in parts}
    if len(rest) != 1 or len({len(part) for part in parts}) != 1:
        raise ValueError("shapes")
    return (*parts[0][:axis], sum(part[axis] for part in parts), *parts[0][axis + 1 :])


def _window(node: Node, weight: Shape) -> tuple[Shape, Shape, Shape, Shape, int]:
    """Kernel, strides, dilations, pads and groups, each in its bounds."""
    kernel = weight[2:]
    if len(weight) != 4 or _attribute(node, "kernel_shape", kernel) != kernel:
        raise ValueError("kernel")
    if node.attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in node.attributes:
        raise ValueError("padding")
    strides, dilations = _attribute(node, "strides", (1, 1)), _attribute(node, "dilations", (1, 1))
    pads, (group,) = _attribute(node, "pads", (0, 0, 0, 0)), _attribute(node, "group", (1,))
    if min(*strides, *dilations, group) < 1 or min(pads) < 0 or max(pads) > 1024:
        raise ValueError("window")
    return kernel, strides, dilations, pads, group


def _convolved(run: _Run, node: Node) -> Shape:
    (batch, channels, *sides), weight = run.of(node, 0), run.of(node, 1)
    kernel, strides, dilations, pads, group = _window(node, weight)
    if channels != weight[1] * group or weight[0] % group or len(sides) != 2:
        raise ValueError("channels")
    if len(node.inputs) > 2 and run.of(node, 2) != weight[:1]:
        raise ValueError("bias")
    made = tuple(
        (sides[k] + pads[k] + pads[k + 2] - dilations[k] * (kernel[k] - 1) - 1) // strides[k] + 1
        for k in range(2)
    )
    run.multiplications += batch * math.prod(made) * math.prod(weight)
    # Runtimes write the pixels under each window side by side, where these are few.
    run.borrow(min(math.prod(made) * math.prod(weight[1:]), math.prod(weight)), "Conv")
    return batch, weight[0], *made


def _spread(run: _Run, node: Node) -> Shape:
    (batch, channels, *sides), weight = run.of(node, 0), run.of(node, 1)
    kernel, strides, dilations, pads, group = _window(node, weight)
    more = _attribute(node, "output_padding", (0, 0))
    if channels != weight[0] or channels % group or len(sides) != 2 or min(more) < 0:
        raise ValueError("channels")
    if len(node.inputs) > 2 and run.of(node, 2) != (weight[1] * group,):
        raise ValueError("bias")
    made = tuple(
        strides[k] * (sides[k] - 1)
        + more[k]
        + dilations[k] * (kernel[k] - 1)
        + 1
        - pads[k]
        - pads[k + 2]
        for k in range(2)
    )
    run.multiplications += batch * math.prod(sides) * math.prod(weight)
    # Runtimes make all windows side by side, and add them up where they overlap.
    run.borrow(math.prod(weight[1:]) * math.prod(sides), "ConvTranspose")
    return batch, weight[1] * group, *made


def _resized(run: _Run, node: Node) -> Shape:
    shape = run.of(node, 0)
    scales = run.numbers(node, 2)
    if len(node.inputs) != 3 or node.inputs[1] or len(scales) != len(shape):
        raise ValueError("scales")
    if not all(0 < scale <= 1 << 10 for scale in scales):
        raise ValueError("scales")
    if node.attributes.get("mode", b"nearest") not in (b"nearest", b"linear"):
        raise ValueError("mode")
    return tuple(math.floor(n * scale) for n, scale in zip(shape, scales, strict=True))


def _cut(run: _Run, node: Node) -> Shape:
    shape = list(run.of(node, 0))
    starts, ends, axes = (run.numbers(node, k) for k in (1, 2, 3))
    steps = run.numbers(node, 4) if len(node.inputs) > 4 else [1.0] * len(axes)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        part = slice(int(start), int(end), int(step))
        shape[int(axis)] = len(range(*part.indices(shape[int(axis)])))
    return tuple(shape)


def _flattened(run: _Run, node: Node) -> Shape:
    shape, (axis,) = run.of(node, 0), _attribute(node, "axis", (1,))
    if not 0 <= axis <= len(shape):
        raise ValueError("axis")
    return math.prod(shape[:axis]), math.prod(shape[axis:])


_SHAPES: Mapping[str, Callable[[_Run, Node], Shape]] = {
    "Add": _broadcast,
    "Cast": _converted,
    "Concat": _concatenated,
    "Conv": _convolved,
    "ConvTranspose": _spread,
    "Flatten": _flattened,
    "Identity": _same,
    "Mul": _broadcast,
    "Relu": _same,
    "Resize": _resized,
    "Sigmoid": _same,
    "Slice": _cut,
}
"""The operators that networks may have, and what shape each makes of its inputs'."""
_COSTS = {"Resize": 4, "Sigmoid": 8}
"""Roughly how many multiplications a number takes, where it is more than one; windows are counted
where they are."""
