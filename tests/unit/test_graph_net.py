# SPDX-License-Identifier: Apache-2.0
"""Packages' graphs as torch modules: the same numbers as ONNX Runtime, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the CUDA backend needs torch")
pytest.importorskip("onnx", reason="the extra train is not installed")

import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from lipsync_fast.arrays import F32
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.cuda.graph_net import GraphNet
from lipsync_fast.errors import UnexpectedGraphError
from lipsync_fast.geometry import Rect
from lipsync_fast.models.audio_encoder import AudioEncoder
from lipsync_fast.models.export import export_audio_encoder, export_unet
from lipsync_fast.models.unet import UNet

WINDOW = Rect(40, 96, 130, 100)


def inputs_of(session: ort.InferenceSession, count: int = 2) -> dict[str, F32]:
    rng = np.random.default_rng(7)
    return {
        given.name: rng.standard_normal((count, *given.shape[1:])).astype(np.float32)
        for given in session.get_inputs()
    }


def both(model: bytes, dtype: torch.dtype = torch.float32) -> list[tuple[F32, F32]]:
    """Each output as ONNX Runtime has it and as the module does."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = inputs_of(session)
    wanted = session.run(None, given)
    net = GraphNet(model).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert list(net.inputs) == list(given)
    assert list(net.outputs) == [out.name for out in session.get_outputs()]
    tensors = [torch.from_numpy(value.copy()).to(dtype) for value in given.values()]
    for tensor in tensors:
        if tensor.ndim == 4 and tensor.shape[1] > 1:
            tensor.data = tensor.contiguous(memory_format=torch.channels_last)
    before = [tensor.clone() for tensor in tensors]
    with torch.inference_mode():
        made = net(*tensors)
    assert all(map(torch.equal, tensors, before)), "inputs are the caller's"
    return [(a, b.float().numpy()) for a, b in zip(wanted, made, strict=True)]


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    torch.manual_seed(1)
    unet, encoder = UNet(width=2, region=224).eval(), AudioEncoder().eval()
    image, decoder = export_unet(unet)
    window = export_unet(unet, window=WINDOW)
    half = export_unet(unet, half=True)
    return {
        "encoder": export_audio_encoder(encoder),
        "image": image,
        "decoder": decoder,
        "image of a window": window[0],
        "decoder of a window": window[1],
        "decoder stored in float16": half[1],
    }


NAMES = (
    "encoder",
    "image",
    "decoder",
    "image of a window",
    "decoder of a window",
    "decoder stored in float16",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_numbers_as_onnx_runtime(models: dict[str, bytes], name: str) -> None:
    for wanted, made in both(models[name]):
        assert made.shape == wanted.shape
        assert np.abs(made - wanted).max() <= 2e-5 * max(1.0, float(np.abs(wanted).max()))


def test_what_pixels_are_made_of_is_float32(models: dict[str, bytes]) -> None:
    net = GraphNet(models["decoder of a window"]).to(torch.bfloat16)
    shapes = {
        given.name: given.shape[1:]
        for given in ort.InferenceSession(
            models["decoder of a window"], providers=["CPUExecutionProvider"]
        ).get_inputs()
    }
    with torch.inference_mode():
        (made,) = net(*(torch.zeros(1, *shapes[name], dtype=torch.bfloat16) for name in net.inputs))
    assert made.dtype == torch.float32


def test_shapes_are_known_without_running(models: dict[str, bytes]) -> None:
    net = GraphNet(models["image of a window"])
    before = [weight.clone() for weight in net.parameters()]
    assert net.shapes({"image": (6, 224, 224)}) == {
        "x1": (2, 104, 134),
        "x2": (2, 112, 112),
        "x3": (4, 56, 56),
        "x4": (8, 28, 28),
        "x5": (16, 14, 14),
        "x6": (32, 7, 7),
    }
    assert all(map(torch.equal, net.parameters(), before))
    with pytest.raises(UnexpectedGraphError, match="inputs are"):
        net.shapes({"picture": (6, 224, 224)})
    with pytest.raises(UnexpectedGraphError, match="cannot be run"):
        net.shapes({"image": (5, 224, 224)})


def test_the_demo_avatars_networks() -> None:
    from lipsync_fast.avatars.library import AvatarLibrary

    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        for name in ("audio_encoder", "image", "decoder"):
            for wanted, made in both(bytes(package.model(name))):
                assert np.abs(made - wanted).max() <= 2e-5 * max(1.0, float(np.abs(wanted).max()))


# ---------------------------------------------------------------- what is not the exporter's
def graph(nodes: list[Any], constants: dict[str, NDArray[Any]] | None = None) -> bytes:
    """A model from ``x`` to ``y``, 4 channels of 6 x 6."""

    def info(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4, 6, 6])

    tensors = [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()]
    made = helper.make_graph(nodes, "g", [info("x")], [info("y")], tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def conv(**attributes: Any) -> bytes:
    weight = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **({"pads": [1, 1, 1, 1]} | attributes))
    return graph([node], {"w": weight})


def test_what_is_written_into_is_nobody_elses() -> None:
    """A ReLU or a sum may write into its input only where nothing reads that later, views too."""
    make = helper.make_node
    window = {
        "start": np.array([1, 1]),
        "end": np.array([5, 5]),
        "axes": np.array([2, 3]),
        "all": np.array([0, 0]),
        "six": np.array([6, 6]),
    }
    weight = {"w": np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)}
    programs = [
        # the same tensor is read again after its ReLU
        [
            make("Conv", ["x", "w"], ["a"]),
            make("Relu", ["a"], ["b"]),
            make("Add", ["a", "b"], ["y"]),
        ],
        # a sum of a tensor with itself
        [make("Conv", ["x", "w"], ["a"]), make("Add", ["a", "a"], ["y"])],
        # the input itself
        [make("Relu", ["x"], ["a"]), make("Add", ["x", "a"], ["y"])],
        # a view lives on while its source is written to
        [
            make("Conv", ["x", "w"], ["a"]),
            make("Slice", ["a", "all", "six", "axes"], ["b"]),
            make("Relu", ["a"], ["c"]),
            make("Add", ["b", "c"], ["y"]),
        ],
        # and its source while the view is
        [
            make("Conv", ["x", "w"], ["a"]),
            make("Slice", ["a", "all", "six", "axes"], ["b"]),
            make("Relu", ["b"], ["c"]),
            make("Add", ["a", "c"], ["y"]),
        ],
    ]
    for nodes in programs:
        for wanted, made in both(graph(nodes, window | weight)):
            assert np.array_equal(made, wanted)


def test_convolutions_that_are_understood() -> None:
    for model in (
        conv(),
        conv(pads=[2, 0, 2, 0]),
        conv(strides=[2, 1]),
        conv(kernel_shape=[3, 3], dilations=[1, 1], group=1),
    ):
        ((wanted, made),) = both(model)
        assert np.abs(made - wanted).max() <= 1e-5


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (conv(pads=[1, 1, 0, 0]), "padding"),
        (conv(dilations=[2, 2]), "attributes"),
        (conv(auto_pad="SAME_UPPER"), "attributes"),
        (conv(kernel_shape=[1, 1]), "attributes"),
        (graph([helper.make_node("Tanh", ["x"], ["y"])]), "not known"),
        (graph([helper.make_node("Relu", ["x"], ["y"], alpha=1)]), "has alpha"),
        (graph([helper.make_node("Relu", ["z"], ["y"])]), "nothing makes z"),
        (graph([helper.make_node("Relu", ["x"], ["a"])]), "nothing makes y"),
        (
            graph([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["y"])]),
            "made twice",
        ),
        (graph([helper.make_node("Concat", ["x", "x"], ["y"], axis=2)]), "another axis"),
        (graph([helper.make_node("Flatten", ["x"], ["y"], axis=2)]), "another axis"),
        (
            graph(
                [helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest")],
                {"s": np.array([1, 1, 2, 2], np.float32)},
            ),
            "another kind",
        ),
        (
            graph(
                [helper.make_node("Slice", ["x", "s", "e", "a"], ["y"])],
                {"s": np.array([-1, 0]), "e": np.array([3, 3]), "a": np.array([2, 3])},
            ),
            "Slice from",
        ),
        (b"\x08\x09", "0 graphs"),
    ],
)
def test_what_the_exporter_does_not_write_is_refused(model: bytes, reason: str) -> None:
    with pytest.raises(UnexpectedGraphError, match=reason):
        GraphNet(model)


def test_a_damaged_network_is_the_avatars_fault(tiny_avatar: Path) -> None:
    from lipsync_fast.engine.backends.cuda.nets import read_net
    from lipsync_fast.errors import AvatarFormatError

    with AvatarPackage.open(tiny_avatar) as package:
        with pytest.raises(AvatarFormatError, match=r"image\.onnx does not fit the manifest"):
            read_net(package, "image", {"image": (6, 224, 224)}, {"x1": (9, 9, 9)})
        with pytest.raises(AvatarFormatError, match=r"decoder\.onnx cannot be used: inputs"):
            read_net(package, "decoder", {"image": (6, 224, 224)}, {})


def test_transposed_convolutions() -> None:
    """Those of wav2lip's decoder: from one pixel, and to twice the map."""
    from lipsync_fast.models.export_wav2lip import export_wav2lip
    from lipsync_fast.models.wav2lip import Wav2Lip

    torch.manual_seed(4)
    for model in export_wav2lip(Wav2Lip(2, 96).eval()):
        for wanted, made in both(model):
            assert np.abs(wanted - made).max() < 1e-4 * max(1.0, float(np.abs(wanted).max()))
