# SPDX-License-Identifier: Apache-2.0
"""Write the networks as ONNX graphs, rewritten exactly for speed (extra ``train``).

Batch norms are folded into the convolutions. The U-Net becomes two graphs: the image half, which
depends on the avatar's frame alone, and the decoder, in which the 1x1 convolution after each
upsampling runs before it where it can: W [up(a), s] = up(Wa a) + Ws s. Batches are dynamic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lipsync_fast.models.audio_encoder import SPECS, AudioEncoder
from lipsync_fast.models.shapes import AUDIO_SHAPE, HALO, Box, level_shapes, output_shape
from lipsync_fast.models.unet import UNet, bottleneck_padding
from lipsync_fast.version import __version__

OPSET = 17
Array = NDArray[np.float32]
EPSILON = 1e-5


def _arrays(module: torch.nn.Module) -> dict[str, Array]:
    return {n: t.detach().to(torch.float32).numpy() for n, t in module.state_dict().items()}


def fold(state: Mapping[str, Array], conv: str, norm: str) -> tuple[Array, Array]:
    """Weight and bias of a convolution with its batch norm folded in (computed in float64)."""
    weight = state[f"{conv}.weight"].astype(np.float64)
    bias = state.get(f"{conv}.bias", np.zeros(len(weight), np.float32)).astype(np.float64)
    scale = state[f"{norm}.weight"] / np.sqrt(
        state[f"{norm}.running_var"].astype(np.float64) + EPSILON
    )
    shifted = (bias - state[f"{norm}.running_mean"]) * scale + state[f"{norm}.bias"]
    return (weight * scale[:, None, None, None]).astype(np.float32), shifted.astype(np.float32)


class _Graph:
    """A graph under construction; every method adds nodes and returns the output's name."""

    def __init__(self, half: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.half = half
        self.count = 0

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        self.count += 1
        out = f"{kind.lower()}_{self.count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def constant(self, name: str, value: NDArray[np.generic], exact: bool = False) -> str:
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

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def add(self, a: str, b: str) -> str:
        return self.node("Add", a, b)

    def rename(self, x: str, name: str) -> str:
        """Give the newest node's output another name."""
        newest = self.nodes[-1]
        assert newest.output[0] == x
        newest.output[0] = name
        return name

    def cut(self, x: str, name: str, box: Box) -> str:
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


def _tail(g: _Graph, state: Mapping[str, Array], name: str, expanded: str, stride: int = 1) -> str:
    """The rest of an inverted residual after its expanding convolution (before the ReLU)."""
    depthwise, bias = fold(state, f"{name}.conv.3", f"{name}.conv.4")
    x = g.relu(expanded)
    x = g.relu(g.conv(x, f"{name}.depthwise", depthwise, bias, (stride, stride), 1, len(depthwise)))
    return g.conv(x, f"{name}.project", *fold(state, f"{name}.conv.6", f"{name}.conv.7"))


def _inverted(
    g: _Graph,
    state: Mapping[str, Array],
    name: str,
    x: str,
    stride: int = 1,
    residual: bool = False,
) -> str:
    expanded = g.conv(x, f"{name}.expand", *fold(state, f"{name}.conv.0", f"{name}.conv.1"))
    y = _tail(g, state, name, expanded, stride)
    return g.add(y, x) if residual else y


def _double(g: _Graph, state: Mapping[str, Array], name: str, x: str, stride: int = 1) -> str:
    y = _inverted(g, state, f"{name}.double_conv.0", x, stride)
    return _inverted(g, state, f"{name}.double_conv.1", y, residual=True)


def _split_expand(
    g: _Graph,
    state: Mapping[str, Array],
    name: str,
    low: str,
    high: str,
    *,
    upsample: bool,
    window: Box | None = None,
) -> str:
    """1x1 convolution over [low, high] as two, the first of them before the upsampling.

    With a ``window``, ``high`` is that part of its map already, and the upsampling comes first: to
    cut the narrow map is cheaper than to cut the expanded one.
    """
    weight, bias = fold(state, f"{name}.conv.0", f"{name}.conv.1")
    half = weight.shape[1] // 2  # both halves of every concatenation are equally wide
    if window is not None:
        low = g.cut(g.upsample(low, name), name, window)
    a = g.conv(low, f"{name}.expand_low", np.ascontiguousarray(weight[:, :half]), None)
    if upsample and window is None:
        a = g.upsample(a, name)
    b = g.conv(high, f"{name}.expand_high", np.ascontiguousarray(weight[:, half:]), bias)
    return g.add(a, b)


def _audio_branch(g: _Graph, state: Mapping[str, Array], x: str, region: int) -> str:
    x = _inverted(g, state, "audio_model.conv1", x)
    x = _inverted(g, state, "audio_model.conv2", x)
    weight, bias = fold(state, "audio_model.conv3", "audio_model.bn3")
    x = g.relu(g.conv(x, "audio_model.conv3", weight, bias, padding=1))
    x = _inverted(g, state, "audio_model.conv4", x, residual=True)
    weight, bias = fold(state, "audio_model.conv5", "audio_model.bn5")
    x = g.relu(g.conv(x, "audio_model.conv5", weight, bias, (2, 2), bottleneck_padding(region)))
    x = _inverted(g, state, "audio_model.conv6", x, residual=True)
    return _inverted(g, state, "audio_model.conv7", x, residual=True)


def export_audio_encoder(encoder: AudioEncoder, half: bool = False) -> bytes:
    """ONNX of the audio encoder: ``mel`` batch x 1 x 80 x 16 to ``feature`` batch x 512.

    Args:
        encoder: the torch module; its running statistics are folded in.
        half: store the weights in float16 (half the size; computed in float32 all the same).
    """
    state, g, x = _arrays(encoder), _Graph(half), "mel"
    for i, spec in enumerate(SPECS):
        name = f"audio_encoder.{i}.conv_block"
        weight, bias = fold(state, f"{name}.0", f"{name}.1")
        y = g.conv(x, f"encoder{i}", weight, bias, spec.stride, spec.padding)
        x = g.relu(g.add(y, x) if spec.residual else y)
    g.rename(g.node("Flatten", x, axis=1), "feature")
    return g.model("audio_encoder", {"mel": (1, 80, 16)}, {"feature": (512,)})


def export_unet(unet: UNet, half: bool = False, window: Box | None = None) -> tuple[bytes, bytes]:
    """ONNX of the U-Net, as two graphs.

    Args:
        unet: the torch module; its running statistics are folded in.
        half: store the weights in float16.
        window: make only this part of the region; it is the same as the whole region's.

    Returns:
        The image half, ``image`` batch x 6 x R x R to ``x1`` .. ``x6``; and the decoder, ``x1`` ..
        ``x6`` and ``audio`` batch x 32 x 16 x 16 to ``region`` batch x 3 x R x R (or the window's
        height and width). Shapes: ``models.shapes``.

    Raises:
        ValueError: the window does not lie within the region.
    """
    region = unet.region
    need = None if window is None else window.grown(HALO, region)
    if window is not None and window != window.grown(0, region):
        raise ValueError(f"{window} does not lie within the region of {region} pixels")
    state, shapes = _arrays(unet), level_shapes(unet.width, region, window)
    g = _Graph(half)
    x = _inverted(g, state, "inc.inconv.0", "image")
    if need is None:
        x = g.rename(x, "x1")
    else:
        g.rename(g.cut(x, "x1", need), "x1")
    for i in range(1, 6):
        x = g.rename(_double(g, state, f"down{i}.maxpool_conv.0", x, stride=2), f"x{i + 1}")
    image = g.model("unet_image", {"image": (6, region, region)}, shapes)

    g = _Graph(half)
    heard = _audio_branch(g, state, "audio", region)
    first = "fuse_conv.0.double_conv.0"
    x = _tail(g, state, first, _split_expand(g, state, first, "x6", heard, upsample=False))
    x = _inverted(g, state, "fuse_conv.0.double_conv.1", x, residual=True)
    x = _double(g, state, "fuse_conv.1", x)
    for i in range(1, 6):
        name = f"up{i}.conv.double_conv"
        expanded = _split_expand(
            g, state, f"{name}.0", x, f"x{6 - i}", upsample=True, window=need if i == 5 else None
        )
        x = _tail(g, state, f"{name}.0", expanded)
        x = _inverted(g, state, f"{name}.1", x, residual=True)
    x = g.node("Sigmoid", g.conv(x, "outc", state["outc.conv.weight"], state["outc.conv.bias"]))
    if window is not None and need is not None:
        inner = Box(window.x - need.x, window.y - need.y, window.width, window.height)
        x = g.cut(x, "window", inner)
    g.rename(x, "region")
    decoder = g.model(
        "unet_decoder",
        {**shapes, "audio": AUDIO_SHAPE},
        {"region": output_shape(region, window)},
    )
    return image, decoder
