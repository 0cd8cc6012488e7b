# SPDX-License-Identifier: Apache-2.0
"""The decoder's native stages: what they compute, and which graphs they take over."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import lipsync_fast
from lipsync_fast import _native
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends import RegionJob, create_backend
from lipsync_fast.engine.backends.decoder import (
    NATIVE_STAGES,
    choose_kernel,
    split_decoder,
)
from lipsync_fast.errors import BackendError, UnexpectedGraphError
from lipsync_fast.families.synctalk2d import AUDIO_SHAPE, level_shapes
from lipsync_fast.geometry import Rect
from lipsync_fast.models.export import export_unet
from lipsync_fast.models.unet import UNet
from lipsync_fast.onnx_io.reader import Graph

KERNELS = _native.up_kernels()
FLOAT_TOLERANCE = 1e-5
Array = NDArray[np.float32]


# One stage against its definition


def upsampled(low: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bilinear x2, corners aligned."""
    for axis in (1, 2):
        size = low.shape[axis]
        at = np.arange(2 * size) * (size - 1) / (2 * size - 1)
        first = np.minimum(at.astype(int), size - 2)
        share = (at - first).reshape((-1, 1) if axis == 1 else (-1,))
        a, b = np.take(low, first, axis), np.take(low, first + 1, axis)
        low = a + (b - a) * share
    return low


def conv(x: NDArray[np.float64], weight: Array, bias: Array | None = None) -> NDArray[np.float64]:
    y = np.tensordot(weight.astype(np.float64), x, 1)
    return y if bias is None else y + bias[:, None, None]


def depthwise(x: NDArray[np.float64], weight: Array, bias: Array) -> NDArray[np.float64]:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    height, width = x.shape[1:]
    y = np.zeros_like(x) + bias[:, None, None]
    for k in range(9):
        top, left = divmod(k, 3)
        y += weight[:, k, None, None] * padded[:, top : top + height, left : left + width]
    return np.maximum(y, 0)


def defined(w: dict[str, Array], low: Array, skip: NDArray[np.float64]) -> NDArray[np.float64]:
    """The whole map; float64, as slow as it likes."""
    e = conv(upsampled(low.astype(np.float64)), w["expand_low"])
    e = np.maximum(e + conv(skip, w["expand_high"], w["expand_bias"]), 0)
    m = conv(depthwise(e, w["depthwise"], w["depthwise_bias"]), w["project"], w["project_bias"])
    g = np.maximum(conv(m, w["expand2"], w["expand2_bias"]), 0)
    g = depthwise(g, w["depthwise2"], w["depthwise2_bias"])
    y = m + conv(g, w["project2"], w["project2_bias"])
    if "picture" not in w:
        return y
    return 1 / (1 + np.exp(-conv(y, w["picture"], w["picture_bias"])))


def stage_weights(rng: np.random.Generator, width: int, picture: bool) -> dict[str, Array]:
    hidden, middle = 4 * width, width // 2 if picture else width
    shapes = {
        "expand_low": (hidden, width),
        "expand_high": (hidden, width),
        "depthwise": (hidden, 9),
        "project": (middle, hidden),
        "expand2": (2 * middle, middle),
        "depthwise2": (2 * middle, 9),
        "project2": (middle, 2 * middle),
    }
    if picture:
        shapes["picture"] = (3, middle)
    made: dict[str, Array] = {}
    for name, (outputs, inputs) in shapes.items():
        made[name] = (rng.standard_normal((outputs, inputs)) / inputs**0.5).astype(np.float32)
        if name != "expand_low":
            bias = "expand_bias" if name == "expand_high" else f"{name}_bias"
            made[bias] = rng.standard_normal(outputs).astype(np.float32)
    return made


@settings(deadline=None, max_examples=40)
@given(data=st.data(), kernel=st.sampled_from(KERNELS), picture=st.booleans())
def test_a_stage_is_what_it_is_defined_as(data: st.DataObject, kernel: str, picture: bool) -> None:
    width = 2 * data.draw(st.integers(1, 18), "half the width")
    height, across = (2 * data.draw(st.integers(2, most)) for most in (10, 90))
    columns, rows = data.draw(st.integers(1, across)), data.draw(st.integers(1, height))
    x, y = data.draw(st.integers(0, across - columns)), data.draw(st.integers(0, height - rows))
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    weights = stage_weights(rng, width, picture)
    low = rng.standard_normal((width, height // 2, across // 2)).astype(np.float32)
    skip = rng.standard_normal((width, height, across)).astype(np.float32)
    need = np.s_[:, max(0, y - 2) : y + rows + 2, max(0, x - 2) : x + columns + 2]
    stage = _native.UpStage(kernel, weights, height, across, (x, y, columns, rows))
    wanted = defined(weights, low, skip)[:, y : y + rows, x : x + columns]
    part = np.ascontiguousarray(skip[need])
    assert part.shape == stage.skip_shape
    made = stage.planes(low, part)
    assert made.shape == wanted.shape
    assert np.abs(made - wanted).max() < FLOAT_TOLERANCE * max(1, np.abs(wanted).max())
    if picture:
        assert np.array_equal(stage.pixels(low, part), _native.region_output(made))


def test_wrong_tensors_are_refused() -> None:
    rng = np.random.default_rng(1)
    weights = stage_weights(rng, 4, picture=False)
    low, skip = np.zeros((4, 8, 10), np.float32), np.zeros((4, 16, 20), np.float32)
    stage = _native.UpStage("portable", weights, 16, 20, (0, 0, 20, 16))
    assert stage.planes(low, skip).shape == (4, 16, 20)
    for a, b in ((low[:, 1:], skip), (low, skip[:3]), (low[0], skip)):
        with pytest.raises((ValueError, TypeError)):
            stage.planes(np.ascontiguousarray(a), np.ascontiguousarray(b))
    with pytest.raises(TypeError):
        stage.planes(low.astype(np.float64), skip)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no picture"):
        stage.pixels(low, skip)
    with pytest.raises(ValueError, match="cannot run"):
        _native.UpStage("mmx", weights, 16, 20, (0, 0, 20, 16))
    for change in ({"project": weights["project"][:, 1:]}, {"depthwise_bias": np.float32([])}):
        broken = {**weights, **change}
        with pytest.raises(ValueError, match="expected"):
            _native.UpStage("portable", broken, 16, 20, (0, 0, 20, 16))


# A whole decoder against ONNX Runtime


def randomised(width: int, region: int) -> UNet:
    """A network whose batch norms do something, and whose pixels are neither black nor white."""
    torch.manual_seed(width)
    unet = UNet(width, region).eval()
    for module in unet.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.6)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return unet


def session(model: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


def levels_of(shapes: dict[str, tuple[int, ...]], seed: int = 3) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {n: rng.standard_normal((1, *s)).astype(np.float32) for n, s in shapes.items()}


@functools.cache
def exported(width: int, window: Rect | None) -> tuple[bytes, dict[str, Array], Array, Array]:
    """A decoder as the exporter writes it, what goes in, and what ONNX Runtime makes of that."""
    _, model = export_unet(randomised(width, 224), half=width == 16, window=window)
    levels = levels_of(level_shapes(width, 224, window))
    audio = np.random.default_rng(4).standard_normal((1, *AUDIO_SHAPE)).astype(np.float32)
    whole = session(model).run(None, {**levels, "audio": audio})[0][0]
    return model, levels, audio, whole


@pytest.mark.slow
@pytest.mark.parametrize("stages", range(1, 4))
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("width", "window"),
    [(4, None), (6, Rect(40, 60, 101, 77)), (16, Rect(213, 0, 11, 1)), (32, Rect(0, 3, 224, 20))],
)
def test_a_split_decoder_is_the_whole_one(
    width: int, window: Rect | None, kernel: str, stages: int
) -> None:
    model, levels, audio, whole = exported(width, window)
    split = split_decoder(model, 224, window, kernel, stages)
    assert len(split.stages) == stages
    head = session(split.head)
    names = {given.name for given in head.get_inputs()}
    assert names == {*levels, "audio"} - split.skips
    joint = head.run(None, {n: v for n, v in {**levels, "audio": audio}.items() if n in names})[0][
        0
    ]
    assert joint.shape == split.joint[1]
    assert np.abs(split.planes(joint, levels) - whole).max() < FLOAT_TOLERANCE
    pixels, expected = split.run(joint, levels), _native.region_output(whole)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    assert (pixels == expected).mean() > 0.99


@pytest.fixture(scope="module")
def demo_blocks() -> NDArray[np.float32]:
    rng = np.random.default_rng(8)
    return 2 * rng.standard_normal((6, 16, 512)).astype(np.float32)


def regions(kernels: str, blocks: Array, threads: int = 1) -> list[NDArray[np.uint8]]:
    backend = create_backend("cpu", threads, kernels=kernels)
    try:
        with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
            avatar = backend.load(package)
            return backend.regions([RegionJob(avatar, 9 * k, b) for k, b in enumerate(blocks)])
    finally:
        backend.close()


@pytest.fixture(scope="module")
def expected(demo_blocks: Array) -> list[NDArray[np.uint8]]:
    return regions("onnxruntime", demo_blocks)


@pytest.mark.parametrize("kernel", KERNELS)
def test_pictures_of_the_demo_avatar(
    kernel: str, demo_blocks: Array, expected: list[NDArray[np.uint8]]
) -> None:
    """As ONNX Runtime makes them, but for a grey level here and there; in any thread."""
    made = regions(kernel, demo_blocks)
    for a, b in zip(expected, made, strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1
        assert (a == b).mean() > 0.999
    for a, b in zip(made, regions(kernel, demo_blocks, threads=3), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_stage_serves_many_threads(kernel: str) -> None:
    rng = np.random.default_rng(2)
    stage = _native.UpStage(kernel, stage_weights(rng, 8, picture=True), 64, 96, (3, 5, 80, 51))
    tensors = [
        tuple(rng.standard_normal(s).astype(np.float32) for s in ((8, 32, 48), stage.skip_shape))
        for _ in range(12)
    ]
    alone = [stage.pixels(*t) for t in tensors]
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(alone, pool.map(lambda t: stage.pixels(*t), tensors), strict=True):
            assert np.array_equal(a, b)


# Which kernel


def test_the_choice_is_by_instruction_set() -> None:
    first = KERNELS[0]
    assert choose_kernel() == (None if first == "portable" else first)
    assert choose_kernel("onnxruntime") is None
    assert [choose_kernel(k) for k in KERNELS] == KERNELS
    assert KERNELS[-1] == "portable"
    with pytest.raises(BackendError, match="expected auto, onnxruntime"):
        create_backend("cpu", 1, kernels="sse9")


# Graphs that are not as the exporter writes them


@pytest.fixture(scope="module")
def decoder() -> onnx.ModelProto:
    return onnx.load_from_string(export_unet(randomised(4, 224))[1])


def node(model: onnx.ModelProto, kind: str, at: int = -1) -> onnx.NodeProto:
    return [n for n in model.graph.node if n.op_type == kind][at]


def set_attribute(n: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [a for a in n.attribute if a.name != name]
    del n.attribute[:]
    n.attribute.extend([*kept, helper.make_attribute(name, value)])


def set_weights(model: onnx.ModelProto, name: str, value: NDArray[np.generic]) -> None:
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(value, name))


BIAS = "up5.conv.double_conv.1.project.bias"
CHANGES: dict[str, Callable[[onnx.ModelProto], Any]] = {
    "another activation": lambda m: setattr(node(m, "Relu"), "op_type", "LeakyRelu"),
    "another end": lambda m: setattr(node(m, "Sigmoid"), "op_type", "Tanh"),
    "dilated": lambda m: set_attribute(node(m, "Conv", -3), "dilations", [2, 2]),
    "not padded": lambda m: set_attribute(node(m, "Conv", -3), "pads", [0, 0, 0, 0]),
    "padded by name": lambda m: set_attribute(node(m, "Conv", -3), "auto_pad", "SAME_UPPER"),
    "corners not aligned": lambda m: set_attribute(
        node(m, "Resize"), "coordinate_transformation_mode", "half_pixel"
    ),
    "a sharper upsampling": lambda m: set_attribute(node(m, "Resize"), "mode", "cubic"),
    "a number that is not understood": lambda m: set_attribute(
        node(m, "Resize"), "cubic_coeff_a", -0.5
    ),
    "upsampled by three": lambda m: set_weights(
        m, node(m, "Resize").input[2], np.float32([1, 1, 3, 3])
    ),
    "another domain": lambda m: setattr(node(m, "Relu"), "domain", "com.example"),
    "doubles": lambda m: set_weights(m, BIAS, np.zeros(2)),
    "a bias too short": lambda m: set_weights(m, BIAS, np.zeros(1, np.float32)),
    "not residual": lambda m: node(m, "Add").input.__setitem__(1, node(m, "Add").input[0]),
    "a second output": lambda m: m.graph.output.append(m.graph.input[0]),
    "both skips the same": lambda m: node(m, "Conv", -6).input.__setitem__(0, "x2"),
    "an input that the rest needs": lambda m: m.graph.node.insert(
        0, helper.make_node("Relu", ["x1"], ["unused"])
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_unusual_graphs_are_left_alone(decoder: onnx.ModelProto, change: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(decoder)
    split_decoder(model.SerializeToString(), 224, None, "portable")
    CHANGES[change](model)
    with pytest.raises(UnexpectedGraphError):
        split_decoder(model.SerializeToString(), 224, None, "portable")


def test_another_window_is_left_alone() -> None:
    window = Rect(40, 60, 101, 77)
    model = export_unet(randomised(4, 224), window=window)[1]
    split_decoder(model, 224, window, "portable")
    for other in (None, Rect(40, 60, 101, 78), Rect(41, 60, 101, 77)):
        with pytest.raises(UnexpectedGraphError):
            split_decoder(model, 224, other, "portable")


def test_an_unusual_decoder_runs_whole(
    tiny_avatar: Path, tmp_path: Path, decoder: onnx.ModelProto
) -> None:
    """In ONNX Runtime, as the package has it: the reader is asked nothing else."""
    block = np.random.default_rng(3).standard_normal((16, 512)).astype(np.float32)
    made = {}
    for name in ("usual", "unusual"):
        path = Path(shutil.copytree(tiny_avatar, tmp_path / name))
        if name == "unusual":
            at = path / "models" / "decoder.onnx"
            model = onnx.load_from_string(at.read_bytes())
            last = node(model, "Sigmoid").output[0]
            node(model, "Sigmoid").output[0] = "before"
            model.graph.node.append(helper.make_node("Identity", ["before"], [last]))
            put(path, at, model.SerializeToString())
        with lipsync_fast.open(path) as avatar:
            loaded: Any = avatar.loaded
            native = choose_kernel() is not None
            assert (loaded.split is not None) == (native and name == "usual")
            made[name] = avatar.backend.regions([RegionJob(avatar.loaded, 1, block)])[0]
    assert np.abs(made["usual"].astype(int) - made["unusual"]).max() <= 1


def put(path: Path, at: Path, data: bytes) -> None:
    """Put other bytes into a package."""
    at.write_bytes(data)
    manifest = json.loads((path / "manifest.json").read_bytes())
    entry = manifest["files"][str(at.relative_to(path))]
    entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (path / "manifest.json").write_text(json.dumps(manifest))


# Bytes that are no graph


def test_a_part_of_a_graph_is_a_whole_model(decoder: onnx.ModelProto) -> None:
    split = split_decoder(decoder.SerializeToString(), 224, None, "portable", NATIVE_STAGES)
    onnx.checker.check_model(onnx.load_from_string(split.head), full_check=True)


@settings(deadline=None)
@given(st.data())
def test_damaged_graphs_are_refused(decoder: onnx.ModelProto, data: st.DataObject) -> None:
    """Or left as they are where the damage does no harm; never another error."""
    model = bytearray(decoder.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        # The structure lies at both ends, weights between them.
        at = data.draw(st.integers(-4000, 20_000)) % len(model)
        model[at] = data.draw(st.integers(0, 255))
    model = model[: data.draw(st.sampled_from([len(model), len(model) - 1, len(model) // 2]))]
    with contextlib.suppress(UnexpectedGraphError):
        split_decoder(bytes(model), 224, None, "portable")


def test_graphs_of_very_many_parts_are_refused(decoder: onnx.ModelProto) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(decoder)
    model.graph.node.extend(helper.make_node("Relu", ["x1"], [f"r{k}"]) for k in range(2048))
    with pytest.raises(UnexpectedGraphError, match="more than 2048"):
        Graph.parse(model.SerializeToString())
    with pytest.raises(UnexpectedGraphError, match="more than 64"):
        Graph.parse(b"\x08\x01" * 65)
    model.CopyFrom(decoder)
    set_attribute(node(model, "Conv"), "pads", [0] * 65)
    with pytest.raises(UnexpectedGraphError, match="more than 64"):
        Graph.parse(model.SerializeToString())


@given(st.binary(max_size=200))
def test_bytes_are_no_graph(data: bytes) -> None:
    try:
        graph = Graph.parse(data)
    except UnexpectedGraphError:
        return
    assert not graph.nodes or graph.nodes[0].kind is not None
