# SPDX-License-Identifier: Apache-2.0
"""A package's ONNX graphs as torch modules: on any device, in any precision, nothing executed.

The graphs are the exporter's (models/export.py): batch norms folded, the 1x1 convolutions before
the upsamplings where they may be. Each operation becomes one step; names become places in a list,
so that a run is a loop without a dictionary. A tensor is let go of after its last use, and a sum
or a ReLU whose input is needed no more writes into it.

Weights and activations are in one precision, 4-D tensors in channels_last, which is how the
convolutions of a GPU like them. What the picture is made of is always float32: the sigmoid, and
what follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipsync_fast.errors import UnexpectedGraphError
from lipsync_fast.onnx_io.reader import Graph, Node

if TYPE_CHECKING:
    from numpy.typing import NDArray

Shape = tuple[int, ...]
Step = Callable[[list[Tensor | None]], Tensor]
_FLOAT = 1
"""ONNX's number of float32."""
_VIEWS = ("Slice", "Flatten", "Identity")
_ATTRIBUTES: dict[str, frozenset[str]] = {
    kind: frozenset(known.split())
    for kind, known in {
        "Conv": "kernel_shape strides dilations pads group auto_pad",
        "ConvTranspose": "kernel_shape strides dilations pads group auto_pad output_padding",
        "Resize": "mode coordinate_transformation_mode",
        "Concat": "axis",
        "Flatten": "axis",
        "Relu": "",
        "Add": "",
        "Sigmoid": "",
        "Slice": "",
        "Identity": "",
    }.items()
}


@dataclass(frozen=True, slots=True)
class _Planned:
    """An operation: what it does, where its result goes, and what is not needed after it."""

    step: Step
    target: int
    dead: tuple[int, ...]


class GraphNet(nn.Module):
    """The torch module of a graph; its weights are parameters that nothing trains.

    Args:
        model: serialized ONNX, as the exporter writes it.

    Attributes:
        inputs: their names, in order.
        outputs: likewise.

    Raises:
        UnexpectedGraphError: it holds what the exporter does not write.
    """

    def __init__(self, model: bytes | memoryview) -> None:
        super().__init__()
        graph = Graph.parse(model)
        self.inputs, self.outputs = tuple(graph.inputs), tuple(graph.outputs)
        self._weights = nn.ParameterList()
        self._places = {name: k for k, name in enumerate(self.inputs)}
        constants = _Constants(graph)
        nodes = [node for node in graph.nodes if not constants.takes(node)]
        last: dict[str, int] = {}
        for k, node in enumerate(nodes):
            last |= dict.fromkeys((name for name in node.inputs if name), k)
        last |= dict.fromkeys(self.outputs, len(nodes))
        self._fresh: set[str] = set()
        """Results of steps, which may be written into; inputs are the caller's."""
        self._plan: list[_Planned] = []
        for k, node in enumerate(nodes):
            self._plan.append(self._planned(node, constants, last, k))
        for name in self.outputs:
            self._place(name)
        self._size = len(self._places)

    # ------------------------------------------------------------ running
    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Run it: a tensor for each of ``inputs``, batch first; one for each of ``outputs``."""
        held: list[Tensor | None] = [None] * self._size
        held[: len(given)] = given
        for planned in self._plan:
            held[planned.target] = planned.step(held)
            for place in planned.dead:
                held[place] = None
        made = (held[self._places[name]] for name in self.outputs)
        return tuple(value for value in made if value is not None)

    def shapes(self, given: Mapping[str, Shape]) -> dict[str, Shape]:
        """What it makes of inputs of these shapes (without the batch), computed without running.

        Raises:
            UnexpectedGraphError: its inputs are others, or do not go through it.
        """
        if set(given) != set(self.inputs):
            raise UnexpectedGraphError(f"inputs are {list(self.inputs)}, expected {list(given)}")
        twin = [w.detach() for w in self._weights]
        try:
            for k, weight in enumerate(twin):
                self._weights[k] = nn.Parameter(weight.to("meta"), requires_grad=False)
            with torch.inference_mode():
                made = self(*(torch.empty(1, *given[name], device="meta") for name in self.inputs))
        except (RuntimeError, IndexError, TypeError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UnexpectedGraphError(f"it cannot be run: {reason}") from None
        finally:
            for k, weight in enumerate(twin):
                self._weights[k] = nn.Parameter(weight, requires_grad=False)
        return {n: tuple(t.shape[1:]) for n, t in zip(self.outputs, made, strict=True)}

    # ------------------------------------------------------------ reading
    def _place(self, name: str) -> int:
        if name not in self._places:
            raise UnexpectedGraphError(f"nothing makes {name}")
        return self._places[name]

    def _planned(
        self, node: Node, constants: _Constants, last: Mapping[str, int], k: int
    ) -> _Planned:
        if node.kind not in _ATTRIBUTES or len(node.outputs) != 1:
            raise UnexpectedGraphError(f"operation {node.kind[:40]} is not known")
        if odd := (node.unread | set(node.attributes)) - _ATTRIBUTES[node.kind]:
            raise UnexpectedGraphError(f"{node.kind} has {', '.join(sorted(odd))[:200]}")
        tensors = [name for name in node.inputs if name and name not in constants]
        wanted = 2 if node.kind == "Add" else None if node.kind == "Concat" else 1
        if not tensors or (wanted is not None and len(tensors) != wanted):
            raise UnexpectedGraphError(f"{node.kind} of {len(tensors)} tensors")
        at = [self._place(name) for name in tensors]
        reusable = [name in self._fresh and last[name] == k for name in tensors]
        step = self._step(node, constants, at, reusable)
        (name,) = node.outputs
        if name in self._places or name in constants:
            raise UnexpectedGraphError(f"{name} is made twice")
        self._places[name] = target = len(self._places)
        if node.kind in _VIEWS:  # of its input: neither may be written into any more
            self._fresh.difference_update(tensors)
        else:
            self._fresh.add(name)
        dead = {place for name, place in zip(tensors, at, strict=True) if last[name] == k}
        return _Planned(step, target, tuple(sorted(dead)))

    def _step(self, node: Node, constants: _Constants, at: list[int], reusable: list[bool]) -> Step:
        kind, a = node.kind, at[0]
        if kind in ("Conv", "ConvTranspose"):
            return self._conv(node, constants, a)
        if kind == "Relu":
            return _relu(a, reusable[0])
        if kind == "Add":
            # Into the first one that nobody else reads; the sum is the same.
            b = at[1]
            if reusable[1] and not reusable[0]:
                a, b = b, a
            return _add(a, b, any(reusable) and a != b)
        if kind == "Concat":
            return _concat(at, node)
        if kind == "Resize":
            return _resize(a, node, constants)
        if kind == "Slice":
            return _slice(a, node, constants)
        if kind == "Sigmoid":
            return lambda held: torch.sigmoid(_tensor(held, a).float())
        if kind == "Flatten":
            if node.attributes.get("axis", 1) != 1:
                raise UnexpectedGraphError("Flatten along another axis than 1")
            return lambda held: _tensor(held, a).flatten(1)
        return lambda held: _tensor(held, a)

    def _conv(self, node: Node, constants: _Constants, a: int) -> Step:
        if len(node.inputs) not in (2, 3) or node.inputs[0] in constants:
            raise UnexpectedGraphError(f"{node.kind} of {len(node.inputs)} inputs")
        weight = constants.floats(node.inputs[1])
        bias = constants.floats(node.inputs[2]) if len(node.inputs) == 3 else None
        spread = node.kind == "ConvTranspose"  # its weights: inputs first; one group alone
        outputs = weight.shape[1:2] if spread else weight.shape[:1]
        if weight.ndim != 4 or (bias is not None and bias.shape != outputs):
            raise UnexpectedGraphError(f"{node.kind} with weights of shape {weight.shape}")
        usual = {"dilations": (1, 1), "auto_pad": b"NOTSET", "kernel_shape": weight.shape[2:]}
        given = {"strides": (1, 1), "pads": (0, 0, 0, 0), "group": 1, **usual, **node.attributes}
        strides, pads, group = given["strides"], given["pads"], given["group"]
        plain = all(given[name] == value for name, value in usual.items())
        if not (plain and isinstance(strides, tuple) and isinstance(pads, tuple)):
            raise UnexpectedGraphError(f"Conv has attributes {dict(node.attributes)}")
        if not isinstance(group, int) or group < 1 or len(strides) != 2 or len(pads) != 4:
            raise UnexpectedGraphError(f"Conv has attributes {dict(node.attributes)}")
        if pads[:2] != pads[2:] or min(strides) < 1 or min(pads) < 0 or max(pads) > 64:
            raise UnexpectedGraphError(f"Conv with padding {pads} and stride {strides}")
        w = self._weight(weight)
        b = None if bias is None else self._weight(bias)
        weights, padding = self._weights, pads[:2]
        if spread:
            more = given.get("output_padding", (0, 0))
            if group != 1 or not isinstance(more, tuple) or len(more) != 2 or min(more) < 0:
                raise UnexpectedGraphError(f"ConvTranspose has {dict(node.attributes)}")

            def spread_step(held: list[Tensor | None]) -> Tensor:
                bias = None if b is None else weights[b]
                x = _tensor(held, a)
                return functional.conv_transpose2d(x, weights[w], bias, strides, padding, more)

            return spread_step

        def step(held: list[Tensor | None]) -> Tensor:
            return functional.conv2d(
                _tensor(held, a),
                weights[w],
                None if b is None else weights[b],
                strides,
                padding,
                1,
                group,
            )

        return step

    def _weight(self, value: NDArray[np.float32]) -> int:
        tensor = torch.from_numpy(value)
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        self._weights.append(nn.Parameter(tensor, requires_grad=False))
        return len(self._weights) - 1


class _Constants:
    """A graph's constants, some of which are stored in float16 and cast."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._cast: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._graph.tensors or name in self._cast

    def takes(self, node: Node) -> bool:
        """Whether a node is only the cast of a constant; it is noted then."""
        if node.kind != "Cast" or len(node.inputs) != 1 or len(node.outputs) != 1:
            return False
        if node.inputs[0] not in self._graph.tensors or node.attributes != {"to": _FLOAT}:
            return False
        self._cast[node.outputs[0]] = node.inputs[0]
        return True

    def floats(self, name: str) -> NDArray[np.float32]:
        """A constant of floating point, in memory of its own."""
        value = self._graph.tensor(self._cast.get(name, name))
        if value.dtype.kind != "f":
            raise UnexpectedGraphError(f"{name} is of type {value.dtype}")
        return np.array(value, np.float32, order="C")

    def integers(self, name: str) -> list[int]:
        """A short list of integers."""
        value = self._graph.tensor(name)
        if value.dtype.kind != "i" or value.ndim != 1 or len(value) > 4:
            raise UnexpectedGraphError(f"{name} is of type {value.dtype}, shape {value.shape}")
        return [int(v) for v in value]


# ---------------------------------------------------------------- operations
def _tensor(held: list[Tensor | None], place: int) -> Tensor:
    value = held[place]
    assert value is not None
    return value


def _relu(a: int, reuse: bool) -> Step:
    if reuse:
        return lambda held: torch.relu_(_tensor(held, a))
    return lambda held: torch.relu(_tensor(held, a))


def _add(a: int, b: int, reuse: bool) -> Step:
    if reuse:
        return lambda held: _tensor(held, a).add_(_tensor(held, b))
    return lambda held: _tensor(held, a) + _tensor(held, b)


def _concat(at: list[int], node: Node) -> Step:
    if node.attributes.get("axis") != 1:
        raise UnexpectedGraphError("Concat along another axis than 1")
    places = tuple(at)
    return lambda held: torch.cat([_tensor(held, k) for k in places], dim=1)


def _resize(a: int, node: Node, constants: _Constants) -> Step:
    expected = {"mode": b"linear", "coordinate_transformation_mode": b"align_corners"}
    inputs = node.inputs
    if len(inputs) != 3 or inputs[1] or node.attributes != expected:
        raise UnexpectedGraphError("Resize of another kind than bilinear with aligned corners")
    if constants.floats(inputs[2]).tolist() != [1, 1, 2, 2]:
        raise UnexpectedGraphError("Resize by another factor than 2")
    return lambda held: functional.interpolate(
        _tensor(held, a), scale_factor=2.0, mode="bilinear", align_corners=True
    )


def _slice(a: int, node: Node, constants: _Constants) -> Step:
    if len(node.inputs) != 4:
        raise UnexpectedGraphError(f"Slice of {len(node.inputs)} inputs")
    start, end, axes = (constants.integers(name) for name in node.inputs[1:])
    if axes != [2, 3] or len(start) != 2 or len(end) != 2 or min(start) < 0 or min(end) < 1:
        raise UnexpectedGraphError(f"Slice from {start} to {end} along {axes}")
    (top, left), (bottom, right) = start, end
    return lambda held: _tensor(held, a)[:, :, top:bottom, left:right]
