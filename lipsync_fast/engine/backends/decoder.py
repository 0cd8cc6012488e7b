# SPDX-License-Identifier: Apache-2.0
"""The decoder in two parts: its first stages in ONNX Runtime, its last ones in native code.

The last stages work at the highest resolutions and take most of a frame's time. The native ones
(csrc/up_kernel.hpp) never write their wide tensors to memory. Their weights come from the package's
own ONNX graph, which is cut where they begin; a graph that does not look as the exporter writes it
is run by ONNX Runtime as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.errors import BackendError, UnexpectedGraphError
from lipsync_fast.families.synctalk2d import HALO
from lipsync_fast.geometry import Rect
from lipsync_fast.onnx_io.reader import Graph, Node

KERNELS = ("auto", "onnxruntime", "avx512", "avx2", "portable")
NATIVE_STAGES = 2
Weights = dict[str, NDArray[np.float32]]


def choose_kernel(choice: str = "auto") -> str | None:
    """The native kernel to use, or None for ONNX Runtime alone.

    By instruction set and by nothing else, so that all engines of a machine make the same bytes.
    Where there is neither AVX-512 nor AVX2 with FMA, ONNX Runtime's own kernels are faster.

    Raises:
        BackendError: unknown, or this processor cannot run it.
    """
    there = _native.up_kernels()
    if choice == "auto":
        return there[0] if there[0] != "portable" else None
    if choice == "onnxruntime":
        return None
    if choice not in there:
        raise BackendError(
            f"decoder kernel {choice!r} cannot be used here:"
            f" expected auto, onnxruntime, {', '.join(there)}"
        )
    return choice


@dataclass(frozen=True, slots=True)
class Stage:
    """A native stage and the skip connection that it reads."""

    native: _native.UpStage
    skip: str


@dataclass(frozen=True, slots=True)
class SplitDecoder:
    """A decoder in two parts.

    Attributes:
        head: ONNX of the first part; its inputs are those of the decoder without ``skips``.
        joint: its only output, and that output's shape.
        stages: the native rest, in order.
    """

    head: bytes
    joint: tuple[str, tuple[int, int, int]]
    stages: tuple[Stage, ...]

    @property
    def skips(self) -> frozenset[str]:
        """Inputs of the decoder that only the native stages read."""
        return frozenset(stage.skip for stage in self.stages)

    def run(
        self, joint: NDArray[np.float32], levels: Mapping[str, NDArray[np.float32]]
    ) -> NDArray[np.uint8]:
        """The picture, H x W x 3 uint8 RGB, from what the head made (C x h x w).

        Args:
            levels: x1 .. of the image half, each 1 x C x H x W.
        """
        last = self.stages[-1]
        return last.native.pixels(self._before_last(joint, levels), levels[last.skip][0])

    def planes(
        self, joint: NDArray[np.float32], levels: Mapping[str, NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """As ``run``, but what the network yields: 3 x H x W float32, BGR in 0..1."""
        last = self.stages[-1]
        return last.native.planes(self._before_last(joint, levels), levels[last.skip][0])

    def _before_last(
        self, joint: NDArray[np.float32], levels: Mapping[str, NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        x = joint
        for stage in self.stages[:-1]:
            x = stage.native.planes(x, levels[stage.skip][0])
        return x


def split_decoder(
    model: bytes | memoryview,
    region: int,
    window: Rect | None,
    kernel: str,
    stages: int = NATIVE_STAGES,
) -> SplitDecoder:
    """Cut a decoder's graph, and make its last stages native.

    Args:
        model: the decoder's ONNX.
        region: side of the whole region.
        window: the part of it that the decoder makes, if not all.
        kernel: as ``choose_kernel`` gave it.
        stages: how many are native, from the last one backwards.

    Raises:
        UnexpectedGraphError: it does not look as expected.
    """
    graph = Graph.parse(model)
    if list(graph.outputs) != ["region"]:
        raise UnexpectedGraphError(f"outputs {list(graph.outputs)}")
    reader = _Reader(graph)
    found: list[Stage] = []
    name, side = "region", region
    for k in range(stages):
        cut = window if k == 0 else None
        weights, name, skip = reader.stage(name, side, cut, last=k == 0)
        part = cut or Rect(0, 0, side, side)
        try:
            native = _native.UpStage(
                kernel, weights, side, side, (part.x, part.y, part.width, part.height)
            )
        except ValueError as error:
            raise UnexpectedGraphError(str(error)) from None
        found.insert(0, Stage(native, skip))
        side //= 2
    skips = [stage.skip for stage in found]
    if len(set(skips)) != stages or not set(skips) <= set(graph.inputs):
        raise UnexpectedGraphError(f"skip connections {skips}")
    kept = [node for node in graph.nodes if id(node) not in reader.read]
    inputs = [given for given in graph.inputs if given not in skips]
    shape = (weights["expand_low"].shape[1], side, side)
    return SplitDecoder(graph.part(kept, inputs, name, shape), (name, shape), tuple(found))


class _Reader:
    """Walks a decoder's graph from its end, and notes which nodes it has understood."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.read: set[int] = set()
        self._makers = {name: node for node in graph.nodes for name in node.outputs}

    def stage(
        self, name: str, side: int, window: Rect | None, *, last: bool
    ) -> tuple[Weights, str, str]:
        """The weights of the stage that makes ``name``; the tensor below it; its skip tensor."""
        weights: Weights = {}
        if last:
            if window is not None:
                need = window.grown(HALO, side)
                inner = Rect(window.x - need.x, window.y - need.y, window.width, window.height)
                name = self._cut(name, inner)
            (name,) = self._node(name, "Sigmoid").inputs
            name = self._conv(name, weights, "picture")
        a, b = self._pair(name)
        # The sum's parts: what the second block begins with, and what its convolutions make of it.
        begun, inner_name = (b, a) if self._before(a, 5) == b else (a, b)
        for kind in ("project2", "depthwise2", "expand2"):
            inner_name = self._conv(inner_name, weights, kind)
            if kind != "expand2":
                (inner_name,) = self._node(inner_name, "Relu").inputs
        if inner_name != begun:
            raise UnexpectedGraphError("a second block that is not residual")
        name = self._conv(begun, weights, "project")
        (name,) = self._node(name, "Relu").inputs
        name = self._conv(name, weights, "depthwise")
        (name,) = self._node(name, "Relu").inputs
        a, b = self._pair(name)
        low, high = (b, a) if self._is_given_conv(a) else (a, b)
        skip = self._conv(high, weights, "expand_high", bias="expand_bias")
        if window is None:
            low = self._conv(self._upsampled(low), weights, "expand_low", bias=None)
        else:
            low = self._conv(low, weights, "expand_low", bias=None)
            low = self._upsampled(self._cut(low, window.grown(HALO, side)))
        return weights, low, skip

    def _maker(self, name: str) -> Node:
        if name not in self._makers:
            raise UnexpectedGraphError(f"nothing makes {name}")
        return self._makers[name]

    def _node(self, name: str, kind: str, inputs: int = 1) -> Node:
        node = self._maker(name)
        if node.kind != kind or len(node.inputs) != inputs or node.outputs != (name,):
            raise UnexpectedGraphError(f"{name} is not made by {kind} of {inputs}")
        if node.unread:
            raise UnexpectedGraphError(f"{kind} has {', '.join(sorted(node.unread))}")
        self.read.add(id(node))
        return node

    def _pair(self, name: str) -> tuple[str, str]:
        a, b = self._node(name, "Add", 2).inputs
        return a, b

    def _before(self, name: str, steps: int) -> str:
        """The tensor that many operations before another; empty where there is none."""
        for _ in range(steps):
            node = self._makers.get(name)
            name = node.inputs[0] if node is not None and node.inputs else ""
        return name

    def _is_given_conv(self, name: str) -> bool:
        node = self._maker(name)
        return node.kind == "Conv" and node.inputs[0] in self.graph.inputs

    def _constant(self, name: str) -> NDArray[np.generic]:
        """A constant, which may be stored in float16."""
        if name in self.graph.tensors:
            return self.graph.tensor(name)
        node = self._node(name, "Cast")
        if node.attributes != {"to": 1}:
            raise UnexpectedGraphError(f"{name} is cast to something else")
        return self.graph.tensor(node.inputs[0])

    def _floats(self, name: str) -> NDArray[np.float32]:
        value = self._constant(name)
        if value.dtype.kind != "f":
            raise UnexpectedGraphError(f"{name} is of type {value.dtype}")
        return np.array(value, np.float32, order="C")  # a copy: it may not be aligned

    def _conv(self, name: str, weights: Weights, what: str, bias: str | None = "") -> str:
        """Take a convolution's weights; the name of its input.

        A depthwise one is 3 x 3 with one pixel of padding, all others are 1 x 1. ``bias``: what it
        is called, ``what`` with "_bias" where empty; a convolution without has None.
        """
        node = self._node(name, "Conv", 2 if bias is None else 3)
        w = self._floats(node.inputs[1])
        depthwise = what.startswith("depthwise")
        side = 3 if depthwise else 1
        if w.ndim != 4 or w.shape[2:] != (side, side) or (depthwise and w.shape[1] != 1):
            raise UnexpectedGraphError(f"{what} has weights of shape {w.shape}")
        expected = {
            "kernel_shape": (side, side),
            "strides": (1, 1),
            "dilations": (1, 1),
            "pads": (side // 2,) * 4,
            "group": w.shape[0] if depthwise else 1,
            "auto_pad": b"NOTSET",
        }
        usual = {**expected, "pads": (0,) * 4, "group": 1}
        if {**usual, **node.attributes} != expected:
            raise UnexpectedGraphError(f"{what} has attributes {dict(node.attributes)}")
        weights[what] = w.reshape(w.shape[0], -1)
        if bias is not None:
            weights[bias or f"{what}_bias"] = self._floats(node.inputs[2])
        return node.inputs[0]

    def _upsampled(self, name: str) -> str:
        """The input of a bilinear upsampling by two, corners aligned."""
        node = self._node(name, "Resize", 3)
        expected = {"mode": b"linear", "coordinate_transformation_mode": b"align_corners"}
        scales = self._floats(node.inputs[2]).tolist()
        if node.inputs[1] or node.attributes != expected or scales != [1, 1, 2, 2]:
            raise UnexpectedGraphError(f"{name} is another kind of upsampling")
        return node.inputs[0]

    def _cut(self, name: str, box: Rect) -> str:
        """The input of a cut to ``box``."""
        node = self._node(name, "Slice", 4)
        start, end, axes = (self._constant(n).tolist() for n in node.inputs[1:])
        expected = [box.y, box.x], [box.y + box.height, box.x + box.width], [2, 3]
        if (start, end, axes) != expected:
            raise UnexpectedGraphError(f"{name} is cut to {start} .. {end}")
        return node.inputs[0]
