# SPDX-License-Identifier: Apache-2.0
"""Networks that somebody hostile has put into a package: none gets to a runtime."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from trust import change, linked, refused, taken_in

onnx = pytest.importorskip("onnx", reason="the extra train is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from lipsync_fast.avatars.package import AvatarPackage  # noqa: E402
from lipsync_fast.errors import AvatarFormatError  # noqa: E402
from lipsync_fast.onnx_io.check import check_network  # noqa: E402

Model = onnx.ModelProto
Tensors = list[onnx.TensorProto]
LEVELS = {"x1": 2, "x2": 2, "x3": 4, "x4": 8, "x5": 16, "x6": 32}


def tensor(name: str, *values: float, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


def model(
    nodes: list[onnx.NodeProto],
    tensors: Tensors = [],  # noqa: B006
    shape: tuple[int | str, ...] = ("batch", 6, 224, 224),
    domains: tuple[str, ...] = ("",),
) -> Model:
    """A model with the input ``image``, whose last node makes ``x1``."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [info("image", TensorProto.FLOAT, shape)],
        [info("x1", TensorProto.FLOAT, None)],
        tensors,
    )
    opsets = [helper.make_opsetid(domain, 17 if domain == "" else 1) for domain in domains]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def one(kind: str, *inputs: str, tensors: Tensors = [], **attributes: object) -> Model:  # noqa: B006
    domain = str(attributes.get("domain", ""))
    node = helper.make_node(kind, ["image", *inputs], ["x1"], **attributes)
    return model([node], tensors, domains=("", domain) if domain else ("",))


def elsewhere(location: str) -> Model:
    """A constant whose numbers lie in another file."""
    constant = tensor("w", *[0.0] * 6)
    constant.ClearField("raw_data")
    constant.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "24"}.items():
        constant.external_data.add(key=key, value=value)
    return one("Add", "w", tensors=[constant])


def claimed(*dims: int) -> Model:
    """A constant that says to be larger than it is."""
    constant = tensor("w", 0.0)
    constant.ClearField("dims")
    constant.dims.extend(dims)
    return one("Add", "w", tensors=[constant])


def branch() -> onnx.GraphProto:
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Relu", ["image"], ["y"])], "b", [], [out])


def with_function() -> Model:
    made = one("Relu")
    made.functions.append(
        helper.make_function(
            "f", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], made.opset_import
        )
    )
    return made


def sparse() -> Model:
    made = one("Relu")
    values, indices = tensor("s", 1.0), tensor("i", 0, kind=np.int64)
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 31]))
    return made


def training() -> Model:
    made = one("Relu")
    made.training_info.add()
    return made


def doubling(kind: str, times: int) -> Model:
    names = ["image", *(f"t{k}" for k in range(times - 1)), "x1"]
    pairs = itertools.pairwise(names)
    if kind == "Concat":
        return model([helper.make_node(kind, [a, a], [b], axis=1) for a, b in pairs])
    scales = [tensor("s", 1, 1, 2, 2)]
    return model([helper.make_node(kind, [a, "", "s"], [b]) for a, b in pairs], scales)


def twice() -> Model:
    made = one("Add", "w", tensors=[tensor("w", 1.0)])
    made.graph.initializer.append(tensor("w", *[1.0] * 7))
    return made


def of_version(version: int) -> Model:
    made = one("Relu")
    made.opset_import[0].version = version
    return made


SIZES = [tensor("big", 1 << 16, 1 << 16, kind=np.int64)]
HOSTILE: dict[str, tuple[Callable[[], Model], str]] = {
    "external data": (lambda: elsewhere("../secret"), "external data"),
    "external data by a path": (lambda: elsewhere("/etc/hostname"), "external data"),
    "custom operator": (lambda: one("Evil", domain="evil.ops"), "evil.ops"),
    "operators of a vendor": (lambda: one("Gelu", domain="com.microsoft"), "com.microsoft"),
    "unknown operator": (lambda: one("Evil"), "Evil"),
    "If": (
        lambda: model(
            [helper.make_node("If", ["c"], ["x1"], then_branch=branch(), else_branch=branch())],
            [tensor("c", True, kind=np.bool_)],
        ),
        "",
    ),
    "Loop": (lambda: one("Loop", "", body=branch()), "Loop"),
    "a subgraph in a known operator": (lambda: one("Relu", body=branch()), "attribute"),
    "a tensor in a known operator": (lambda: one("Relu", value=tensor("v", 1.0)), "attribute"),
    "a function": (with_function, "field 25"),
    "sparse constant of 2^31": (sparse, "field 15"),
    "training": (training, "field 20"),
    "constant of 2^31 numbers": (lambda: claimed(1 << 31), "bytes for shape"),
    "constant of 2^62 numbers": (lambda: claimed(1 << 31, 1 << 31), "bytes for shape"),
    "constant of a negative size": (lambda: claimed(-1), "shape"),
    "constant of no size": (lambda: claimed(0, 1 << 40), "bytes"),
    "input of 2^31": (
        lambda: model([helper.make_node("Relu", ["image"], ["x1"])], shape=(1, 1 << 31)),
        "shape",
    ),
    "input of a negative size": (
        lambda: model([helper.make_node("Relu", ["image"], ["x1"])], shape=(1, -5)),
        "shape",
    ),
    "ConstantOfShape": (
        lambda: model([helper.make_node("ConstantOfShape", ["big"], ["x1"])], SIZES),
        "ConstantOfShape",
    ),
    "Expand": (lambda: one("Expand", "big", tensors=SIZES), "Expand"),
    "Tile": (lambda: one("Tile", "big", tensors=SIZES), "Tile"),
    "Reshape": (lambda: one("Reshape", "big", tensors=SIZES), "Reshape"),
    "Resize by 2^20": (
        lambda: one("Resize", "", "s", tensors=[tensor("s", 1, 1, 2**20, 2**20)]),
        "Resize",
    ),
    "Resize by 1000": (
        lambda: one("Resize", "", "s", tensors=[tensor("s", 1, 1, 1000, 1000)]),
        "numbers",
    ),
    "Resize by infinity": (
        lambda: one("Resize", "", "s", tensors=[tensor("s", 1, 1, np.inf, 1)]),
        "not finite",
    ),
    "Resize to sizes": (
        lambda: one("Resize", "", "", "z", tensors=[tensor("z", 1, 6, 1 << 31, 1, kind=np.int64)]),
        "Resize",
    ),
    "doubled 40 times": (lambda: doubling("Concat", 40), "numbers"),
    "enlarged 20 times": (lambda: doubling("Resize", 20), "numbers"),
    "pads of 2^30": (
        lambda: one("Conv", "w", tensors=[kernel(6, 6)], pads=[1 << 30] * 4),
        "Conv",
    ),
    "pads below 0": (lambda: one("Conv", "w", tensors=[kernel(6, 6)], pads=[-9] * 4), "Conv"),
    "a stride of 0": (lambda: one("Conv", "w", tensors=[kernel(6, 6)], strides=[0, 0]), "Conv"),
    "other channels": (lambda: one("Conv", "w", tensors=[kernel(6, 7)]), "Conv"),
    "a stride of 2^19, transposed": (
        lambda: one("ConvTranspose", "w", tensors=[kernel(6, 6)], strides=[1 << 19] * 2),
        "numbers",
    ),
    "years of multiplications": (
        lambda: one("Conv", "w", tensors=[kernel(160, 6, 224)], pads=[223] * 4),
        "expected at most",
    ),
    "Cast to text": (lambda: one("Cast", to=TensorProto.STRING), "Cast"),
    "weights that are no numbers": (
        lambda: one("Add", "w", tensors=[tensor("w", np.nan)]),
        "not finite",
    ),
    "weights without an end, in half": (
        lambda: one("Add", "w", tensors=[tensor("w", np.inf, kind=np.float16)]),
        "not finite",
    ),
    "weights of text": (
        lambda: one("Add", "w", tensors=[helper.make_tensor("w", TensorProto.STRING, [1], [b"x"])]),
        "",
    ),
    "a constant twice": (twice, "twice"),
    "100,000 nodes": (
        lambda: model([helper.make_node("Relu", ["image"], [f"t{k}"]) for k in range(100_000)]),
        "more than 2048",
    ),
    "an operator on what is not there": (lambda: one("Add", "nothing"), "Add"),
    "a circle": (lambda: model([helper.make_node("Add", ["image", "x1"], ["x1"])]), "Add"),
    "operators of version 99": (lambda: of_version(99), "version 99"),
    "operators of version 1": (lambda: of_version(1), "version 1,"),
}


def kernel(made: int, read: int, side: int = 1) -> onnx.TensorProto:
    return numpy_helper.from_array(np.zeros((made, read, side, side), np.float32), "w")


def test_no_hostile_network_reaches_a_runtime(tiny_avatar: Path, tmp_path: Path) -> None:
    """Each is refused in all places of a package as an engine loads it; a runtime reads none."""
    folder = tmp_path / "packages"
    (tmp_path / "secret").write_bytes(bytes(24))
    jobs, expected = [], []
    for number, (make, word) in enumerate(HOSTILE.values()):
        path = linked(tiny_avatar, folder / str(number))
        name = ("audio_encoder", "decoder", "image")[min(number, 2)]
        change(path, f"models/{name}.onnx", make().SerializeToString())
        jobs.append(("served", path))
        expected.append((f"{name}.onnx", "cannot be used", word))
    for outcome, words in zip(
        taken_in(("served", tiny_avatar), jobs, folder), expected, strict=True
    ):
        refused(outcome, *words)


def field(number: int, data: bytes) -> bytes:
    """A field of a message, of bytes."""
    assert len(data) < 128
    return bytes([number << 3 | 2, len(data)]) + data


def raw(node: bytes, more: bytes = b"", model_more: bytes = b"") -> bytes:
    """A model from a node as bytes: fields in an order that no library writes."""
    graph = b"".join(
        [
            field(1, node),
            field(
                11,
                field(1, b"image")
                + field(2, field(1, b"\x08\x01" + field(2, field(1, b"\x08\x09")))),
            ),
            field(12, field(1, b"x1") + field(2, field(1, b"\x08\x01"))),
            more,
        ]
    )
    return b"\x08\x09" + field(7, graph) + field(8, b"\x10\x11") + model_more


RELU = field(1, b"image") + field(2, b"x1") + field(4, b"Relu")


def test_a_domain_that_stands_before_its_operator_is_seen() -> None:
    with pytest.raises(AvatarFormatError, match=r"operator 'evil\.Relu'"):
        check_network(raw(field(7, b"evil") + RELU), "x.onnx")
    with pytest.raises(AvatarFormatError, match=r"operator 'evil\.Relu'"):
        check_network(raw(RELU + field(7, b"evil")), "x.onnx")


@pytest.mark.parametrize(
    "data",
    [
        raw(RELU)[:-3],
        raw(RELU, more=field(15, b"")),
        raw(RELU, model_more=field(7, b"")),
        raw(RELU, model_more=b"\xca\x01\x00"),
        raw(b"\xba\x80\x80\x80\x80\x02\x04evil" + RELU),
        raw(b"\xff" * 11),
        raw(b"\x0b"),
        b"",
        b"\xff" * 200,
    ],
)
def test_messages_that_readers_would_take_for_different_things(data: bytes) -> None:
    with pytest.raises(AvatarFormatError, match=r"x\.onnx cannot be used"):
        check_network(data, "x.onnx")


def test_what_is_ours_passes(tiny_avatar: Path) -> None:
    with AvatarPackage.open(tiny_avatar) as package:
        for name in ("audio_encoder", "image", "decoder"):
            assert package.network(name) == package.model(name)
