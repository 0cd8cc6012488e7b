# SPDX-License-Identifier: Apache-2.0
"""Weights out of ONNX files: every way that exporters write the network, and networks not its."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipsync_fast.errors import CheckpointError

torch = pytest.importorskip("torch", reason="the extra train is not installed")

import onnx  # noqa: E402
from onnx import numpy_helper  # noqa: E402

from lipsync_fast.models.export import export_unet  # noqa: E402
from lipsync_fast.models.onnx_weights import load_unet_onnx  # noqa: E402
from lipsync_fast.models.unet import UNet  # noqa: E402
from lipsync_fast.untrusted import limits  # noqa: E402

pytestmark = pytest.mark.slow

CLOSE = 1e-5
Models = dict[str, onnx.ModelProto]


def network(width: int, region: int) -> UNet:
    """With statistics that differ from what they are at first."""
    torch.manual_seed(3)
    made = UNet(width, region)
    with torch.no_grad():
        for part in made.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight.normal_(1, 0.1)
                part.bias.normal_(0, 0.1)
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 2)
    return made.eval()


def exported(
    net: UNet, path: Path, *, fold: bool, names: tuple[str, str], opset: int, sizes_open: bool
) -> Path:
    """As PyTorch's exporter writes it."""
    mode = torch.onnx.TrainingMode
    with warnings.catch_warnings(action="ignore"):  # it is an older exporter, as users had it
        torch.onnx.export(
            copy.deepcopy(net),
            (torch.zeros(1, 6, net.region, net.region), torch.zeros(1, 32, 16, 16)),
            str(path),
            input_names=list(names),
            output_names=["output"],
            dynamic_axes={names[0]: {0: "n", 2: "h", 3: "w"}, names[1]: {0: "n"}}
            if sizes_open
            else None,
            opset_version=opset,
            training=mode.EVAL if fold else mode.PRESERVE,
            do_constant_folding=fold,
            dynamo=False,
        )
    return path


def outputs(net: UNet) -> np.ndarray:
    generator = torch.Generator().manual_seed(5)
    image = torch.rand(1, 6, net.region, net.region, generator=generator)
    audio = torch.randn(1, 32, 16, 16, generator=generator)
    with torch.no_grad():
        return net(image, audio).numpy()


@pytest.mark.parametrize(
    ("fold", "names", "opset", "sizes_open", "region"),
    [
        (True, ("input", "audio"), 17, False, 224),
        (False, ("visual_input", "audio_input"), 11, False, 224),
        (False, ("input", "audio"), 13, True, 320),
    ],
)
def test_what_exporters_write(
    tmp_path: Path, fold: bool, names: tuple[str, str], opset: int, sizes_open: bool, region: int
) -> None:
    """Batch norms folded or not, sizes given or open: the same network as its state dict's."""
    net = network(2, region)
    path = exported(
        net, tmp_path / "n.onnx", fold=fold, names=names, opset=opset, sizes_open=sizes_open
    )
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert ("BatchNormalization" in kinds) is not fold
    read = load_unet_onnx(path)
    assert (read.width, read.region) == (2, region)
    assert np.abs(outputs(read) - outputs(net)).max() <= CLOSE
    for ours, theirs in zip(export_unet(read), export_unet(net), strict=True):
        for a, b in zip(
            onnx.load_from_string(ours).graph.initializer,
            onnx.load_from_string(theirs).graph.initializer,
            strict=True,
        ):
            assert a.name == b.name
            assert np.abs(numpy_helper.to_array(a) - numpy_helper.to_array(b)).max() <= CLOSE


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A folded and an unfolded export; copy before changing."""
    folder, net = tmp_path_factory.mktemp("onnx"), network(2, 224)
    names = ("input", "audio")
    return {
        how: onnx.load(
            exported(
                net,
                folder / f"{how}.onnx",
                fold=how == "folded",
                names=names,
                opset=17,
                sizes_open=False,
            )
        )
        for how in ("folded", "norms")
    }


def nodes(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def attribute(node: onnx.NodeProto, name: str) -> onnx.AttributeProto:
    return next(a for a in node.attribute if a.name == name)


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def put(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def test_half_precision(originals: Models, tmp_path: Path) -> None:
    """Weights stored as float16 behind casts are read, and computed in float32."""
    model = copy.deepcopy(originals["folded"])
    for tensor in list(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
        cast = onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, cast)
    onnx.save(model, tmp_path / "half.onnx")
    onnx.save(originals["folded"], tmp_path / "whole.onnx")
    half, whole = (load_unet_onnx(tmp_path / f"{n}.onnx") for n in ("half", "whole"))
    assert 0 < np.abs(outputs(half) - outputs(whole)).max() < 0.01


def stride(model: onnx.ModelProto) -> None:
    attribute(nodes(model, "Conv")[4], "strides").ints[:] = [1, 1]


def dilated(model: onnx.ModelProto) -> None:
    attribute(nodes(model, "Conv")[1], "dilations").ints[:] = [2, 2]


def no_residual(model: onnx.ModelProto) -> None:
    add = nodes(model, "Add")[0]
    add.op_type = "Relu"
    del add.input[1:]


def concat_turned(model: onnx.ModelProto) -> None:
    concat = nodes(model, "Concat")[1]
    concat.input[:] = list(concat.input)[::-1]


def another_axis(model: onnx.ModelProto) -> None:
    attribute(nodes(model, "Concat")[0], "axis").i = 2


def another_operator(model: onnx.ModelProto) -> None:
    nodes(model, "Relu")[3].op_type = "Tanh"


def custom_operator(model: onnx.ModelProto) -> None:
    nodes(model, "Relu")[3].domain = "evil"


def half_pixels(model: onnx.ModelProto) -> None:
    attribute(nodes(model, "Resize")[0], "coordinate_transformation_mode").s = b"half_pixel"


def scaled_by_three(model: onnx.ModelProto) -> None:
    value = nodes(model, "Constant")[0].attribute[0].t
    put(value, np.array([1, 1, 3, 3], np.float32))


def padded(model: onnx.ModelProto) -> None:
    resize = nodes(model, "Resize")[0]
    out, resize.output[0] = resize.output[0], "unpadded"
    model.graph.initializer.append(
        numpy_helper.from_array(np.array([0, 0, 1, 0, 0, 0, 0, 0], np.int64), "amounts")
    )
    at = list(model.graph.node).index(resize) + 1
    model.graph.node.insert(at, onnx.helper.make_node("Pad", ["unpadded", "amounts"], [out]))


def no_sigmoid(model: onnx.ModelProto) -> None:
    nodes(model, "Sigmoid")[0].op_type = "Relu"


def one_input(model: onnx.ModelProto) -> None:
    del model.graph.input[1]


def three_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1, 32, 16, 16])
    )


def not_finite(model: onnx.ModelProto) -> None:
    name = nodes(model, "Conv")[7].input[1]
    values = numpy_helper.to_array(constant(model, name)).copy()
    values.flat[0] = np.nan
    put(constant(model, name), values)


def whole_numbers(model: onnx.ModelProto) -> None:
    name = nodes(model, "Conv")[7].input[1]
    put(constant(model, name), numpy_helper.to_array(constant(model, name)).astype(np.int64))


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = constant(model, nodes(model, "Conv")[7].input[1])
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def bytes_missing(model: onnx.ModelProto) -> None:
    constant(model, nodes(model, "Conv")[7].input[1]).dims[0] = 1 << 31


def no_weights(model: onnx.ModelProto) -> None:
    nodes(model, "Conv")[7].input[1] = "nowhere"


def old_operators(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9


def a_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="x")


def another_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = nodes(model, "Relu")[0].output[0]


def negative_variance(model: onnx.ModelProto) -> None:
    norm = nodes(model, "BatchNormalization")[5]
    model.graph.initializer.append(
        numpy_helper.from_array(
            np.full(numpy_helper.to_array(constant_of(model, norm.input[4])).shape, -1, np.float32),
            "negative",
        )
    )
    norm.input[4] = "negative"


def constant_of(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """Behind the ``Identity`` that the exporter writes for constants that are equal."""
    made = {node.output[0]: node for node in nodes(model, "Identity")}
    while name in made:
        name = made[name].input[0]
    return constant(model, name)


def norm_twice(model: onnx.ModelProto) -> None:
    norm = nodes(model, "BatchNormalization")[5]
    again = copy.deepcopy(norm)
    out, norm.output[0] = norm.output[0], "between"
    again.input[0], again.output[0], again.name = "between", out, "again"
    model.graph.node.insert(list(model.graph.node).index(norm) + 1, again)


CHANGES: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "another stride": (stride, "expected weights"),
    "a dilated convolution": (dilated, "dilated"),
    "a sum left out": (no_residual, "nothing like it"),
    "a concatenation turned round": (concat_turned, "nothing like it"),
    "another axis": (another_axis, "does not join channels"),
    "another operator": (another_operator, "nothing like it"),
    "an operator of somebody's": (custom_operator, "nothing like it"),
    "another way to scale": (half_pixels, "corners aligned"),
    "scaled by three": (scaled_by_three, "expected 1, 1, 2, 2"),
    "padded": (padded, "adds"),
    "no sigmoid": (no_sigmoid, "sigmoid"),
    "one input": (one_input, "0 inputs of 32 channels"),
    "three inputs": (three_inputs, "2 inputs of 32 channels"),
    "weights that are not finite": (not_finite, "not finite"),
    "weights of whole numbers": (whole_numbers, "expected floating-point"),
    "weights in another file": (elsewhere, "another file"),
    "fewer bytes than said": (bytes_missing, "bytes for shape"),
    "no weights": (no_weights, "not a constant"),
    "old operators": (old_operators, "expected 11 or newer"),
    "a function": (a_function, "expected one graph"),
    "another output": (another_output, "sigmoid"),
}
OF_NORMS: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "a negative variance": (negative_variance, "not all positive"),
    "a batch norm twice": (norm_twice, "where the network has none"),
}


@pytest.mark.parametrize("case", [*CHANGES, *OF_NORMS])
def test_another_network_is_refused(originals: Models, tmp_path: Path, case: str) -> None:
    change, word = (CHANGES | OF_NORMS)[case]
    model = copy.deepcopy(originals["folded" if case in CHANGES else "norms"])
    change(model)
    path = tmp_path / "n.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError) as caught:
        load_unet_onnx(path)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert word in said
    assert len(said.splitlines()) == 1
    assert len(said) < 700


def test_files_that_are_no_network(originals: Models, tmp_path: Path) -> None:
    data = originals["folded"].SerializeToString()
    path = tmp_path / "n.onnx"
    for wrong in (b"", b"hello", b"\x80\x04}.", data[:-9], data[:40], data + data):
        path.write_bytes(wrong)
        with pytest.raises(CheckpointError, match=r"n\.onnx"):
            load_unet_onnx(path)
    with path.open("wb") as file:
        file.truncate(limits.NETWORK_BYTES + 1)
    for place in (path, tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(CheckpointError):
            load_unet_onnx(place)


def test_a_part_of_the_network_is_none(tmp_path: Path) -> None:
    """Our own packages hold it in two halves; neither is the whole."""
    for data in export_unet(network(2, 224)):
        (tmp_path / "n.onnx").write_bytes(data)
        with pytest.raises(CheckpointError, match="inputs of"):
            load_unet_onnx(tmp_path / "n.onnx")
