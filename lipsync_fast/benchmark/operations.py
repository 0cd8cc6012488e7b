# SPDX-License-Identifier: Apache-2.0
"""What the operations of a package's graph must do for one frame, counted (needs onnx)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import shape_inference

FREE = {"Constant", "Shape", "Flatten", "Reshape", "Identity", "Unsqueeze", "Squeeze", "Cast"}
"""Operations on sizes and views, which take no time on a device."""


@dataclass(frozen=True)
class Operation:
    """One of a graph, for one frame: multiply-adds, elements read and written, of weights."""

    kind: str
    multiply_adds: int
    elements: int
    weights: int


def operations(model: bytes) -> list[Operation]:
    """Operations of a package's graph, as it is written: nothing is assumed to be fused."""
    read = onnx.load_from_string(model)
    for value in read.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(read, data_prop=True).graph
    sizes = {w.name: list(w.dims) for w in graph.initializer}
    weights = set(sizes)
    for v in (*graph.value_info, *graph.output, *graph.input):
        sizes[v.name] = [d.dim_value for d in v.type.tensor_type.shape.dim]
    found = []
    for node in graph.node:
        if node.op_type in FREE:
            continue
        inputs = [name for name in node.input if name in sizes]
        read_, held = (
            sum(int(np.prod(sizes[name])) for name in inputs if (name in weights) == kind)
            for kind in (False, True)
        )
        written = sum(int(np.prod(sizes[name])) for name in node.output)
        adds = 0
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            adds = int(np.prod(sizes[node.input[1]][1:])) * written
        found.append(Operation(node.op_type, adds, read_ + written, held))
    return found
