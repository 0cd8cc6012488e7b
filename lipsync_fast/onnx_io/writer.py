# SPDX-License-Identifier: Apache-2.0
"""Writing ONNX graphs operator by operator (extra ``train``): what all exports share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lipsync_fast.geometry import Rect
from lipsync_fast.version import __version__

OPSET = 17
Array = NDArray[np.float32]
EPSILON = 1e-5


def arrays_of(module: torch.nn.Module) -> dict[str, Array]:
    """A module's state as float32, by name."""
    return {n: t.detach().to(torch.float32).numpy() for n, t in module.state_dict().items()}


def fold(
    state: Mapping[str, Array], conv: str, norm: str, *, transposed: bool = False
) -> tuple[Array, Array]:
    """Weight and bias of a convolution with its batch norm folded in (computed in float64).

    A ``transposed`` one has its outputs along the weight's second axis.
    """
    weight = state[f"{conv}.weight"].astype(np.float64)
    outputs = weight.shape[1 if transposed else 0]
    bias = state.get(f"{conv}.bias", np.zeros(outputs, np.float32)).astype(np.float64)
    scale = state[f"{norm}.weight"] / np.sqrt(
        state[f"{norm}.running_var"].astype(np.float64) + EPSILON
    )
    shifted = (bias - state[f"{norm}.running_mean"]) * scale + state[f"{norm}.bias"]
    along = scale[:, None, None] if transposed else scale[:, None, None, None]
    return (weight * along).astype(np.float32), shifted.astype(np.float32)


class GraphWriter:
    """A graph under construction; every method adds nodes and returns the output's name."""

    def __init__(self, half: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.half = half
        self.count = 0

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """An operator with one output."""
        self.count += 1
        out = f"{kind.lower()}_{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def constant(self, name: str, value: NDArray[np.generic], exact: bool = False) -> str:
        """A constant; with ``exact`` never in float16."""
        if self.half and not exact:
            self.constants.append(numpy_helper.from_array(value.astype(np.float16), f"{name}_half"))
            self.nodes.append(
                helper.make_node("Cast", [f"{name}_half"], [name], name=name, to=TensorProto.FLOAT)
            )
        else:
            self.constants.append(numpy_helper.from_array(value, name))
        return name

    def conv(
        self,
        x: str,
        name: str,
        weight: Array,
        bias: Array | None,
        stride: tuple[int, int] = (1, 1),
        padding: int = 0,
        groups: int = 1,
    ) -> str:
        """A convolution; weights outputs x inputs x height x width."""
        inputs = [x, self.constant(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.constant(f"{name}.bias", bias))
        return self.node(
            "Conv",
            *inputs,
            kernel_shape=list(weight.shape[2:]),
            strides=list(stride),
            pads=[padding] * 4,
            group=groups,
        )

    def spread(
        self,
        x: str,
        name: str,
        weight: Array,
        bias: Array,
        stride: int = 1,
        padding: int = 0,
        more: int = 0,
    ) -> str:
        """A transposed convolution; weights inputs x outputs x height x width.

        Args:
            more: rows and columns that the result has at its end besides (``output_padding``).
        """
        inputs = [x, self.constant(f"{name}.weight", weight), self.constant(f"{name}.bias", bias)]
        return self.node(
            "ConvTranspose",
            *inputs,
            kernel_shape=list(weight.shape[2:]),
            strides=[stride] * 2,
            pads=[padding] * 4,
            output_padding=[more] * 2,
        )

    def relu(self, x: str) -> str:
        """Negative numbers become 0."""
        return self.node("Relu", x)

    def add(self, a: str, b: str) -> str:
        """A sum."""
        return self.node("Add", a, b)

    def rename(self, x: str, name: str) -> str:
        """Give the newest node's output another name."""
        newest = self.nodes[-1]
        assert newest.output[0] == x
        newest.output[0] = name
        return name

    def cut(self, x: str, name: str, box: Rect) -> str:
        """Rows and columns of a box."""
        start = np.array([box.y, box.x], np.int64)
        end = start + np.array([box.height, box.width], np.int64)
        numbers = {"start": start, "end": end, "axes": np.array([2, 3], np.int64)}
        return self.node(
            "Slice", x, *(self.constant(f"{name}.{k}", v, exact=True) for k, v in numbers.items())
        )

    def upsample(self, x: str, name: str) -> str:
        """Bilinear x2, corners aligned."""
        scales = self.constant(f"{name}.scales", np.array([1, 1, 2, 2], np.float32), exact=True)
        return self.node(
            "Resize", x, "", scales, mode="linear", coordinate_transformation_mode="align_corners"
        )

    def model(
        self,
        title: str,
        inputs: Mapping[str, tuple[int, ...]],
        outputs: Mapping[str, tuple[int, ...]],
    ) -> bytes:
        """The finished graph, serialized; shapes are without the batch."""

        def info(name: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

        graph = helper.make_graph(
            self.nodes,
            title,
            [info(n, s) for n, s in inputs.items()],
            [info(n, s) for n, s in outputs.items()],
            self.constants,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="lipsync-fast",
            producer_version=__version__,
            ir_version=9,
        )
        onnx.checker.check_model(model)
        data: bytes = model.SerializeToString()
        return data
