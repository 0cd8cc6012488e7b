# SPDX-License-Identifier: Apache-2.0
"""Write the networks as ONNX graphs, rewritten exactly for speed (extra ``train``).

Batch norms are folded into the convolutions. The U-Net becomes two graphs: the image half, which
depends on the avatar's frame alone, and the decoder, in which the 1x1 convolution after each
upsampling runs before it where it can: W [up(a), s] = up(Wa a) + Ws s. Batches are dynamic.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lipsync_fast.families.synctalk2d import AUDIO_SHAPE, HALO, level_shapes
from lipsync_fast.geometry import Rect
from lipsync_fast.models.audio_encoder import SPECS, AudioEncoder
from lipsync_fast.models.unet import UNet, bottleneck_padding
from lipsync_fast.onnx_io.writer import Array, GraphWriter, arrays_of, fold


def _tail(
    g: GraphWriter, state: Mapping[str, Array], name: str, expanded: str, stride: int = 1
) -> str:
    """The rest of an inverted residual after its expanding convolution (before the ReLU)."""
    depthwise, bias = fold(state, f"{name}.conv.3", f"{name}.conv.4")
    x = g.relu(expanded)
    x = g.relu(g.conv(x, f"{name}.depthwise", depthwise, bias, (stride, stride), 1, len(depthwise)))
    return g.conv(x, f"{name}.project", *fold(state, f"{name}.conv.6", f"{name}.conv.7"))


def _inverted(
    g: GraphWriter,
    state: Mapping[str, Array],
    name: str,
    x: str,
    stride: int = 1,
    residual: bool = False,
) -> str:
    expanded = g.conv(x, f"{name}.expand", *fold(state, f"{name}.conv.0", f"{name}.conv.1"))
    y = _tail(g, state, name, expanded, stride)
    return g.add(y, x) if residual else y


def _double(g: GraphWriter, state: Mapping[str, Array], name: str, x: str, stride: int = 1) -> str:
    y = _inverted(g, state, f"{name}.double_conv.0", x, stride)
    return _inverted(g, state, f"{name}.double_conv.1", y, residual=True)


def _split_expand(
    g: GraphWriter,
    state: Mapping[str, Array],
    name: str,
    low: str,
    high: str,
    *,
    upsample: bool,
    window: Rect | None = None,
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


def _audio_branch(g: GraphWriter, state: Mapping[str, Array], x: str, region: int) -> str:
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
    state, g, x = arrays_of(encoder), GraphWriter(half), "mel"
    for i, spec in enumerate(SPECS):
        name = f"audio_encoder.{i}.conv_block"
        weight, bias = fold(state, f"{name}.0", f"{name}.1")
        y = g.conv(x, f"encoder{i}", weight, bias, spec.stride, spec.padding)
        x = g.relu(g.add(y, x) if spec.residual else y)
    g.rename(g.node("Flatten", x, axis=1), "feature")
    return g.model("audio_encoder", {"mel": (1, 80, 16)}, {"feature": (512,)})


def export_unet(unet: UNet, half: bool = False, window: Rect | None = None) -> tuple[bytes, bytes]:
    """ONNX of the U-Net, as two graphs.

    Args:
        unet: the torch module; its running statistics are folded in.
        half: store the weights in float16.
        window: make only this part of the region; it is the same as the whole region's.

    Returns:
        The image half, ``image`` batch x 6 x R x R to ``x1`` .. ``x6``; and the decoder, ``x1`` ..
        ``x6`` and ``audio`` batch x 32 x 16 x 16 to ``region`` batch x 3 x R x R (or the window's
        height and width). Shapes: ``families.synctalk2d``.

    Raises:
        ValueError: the window does not lie within the region.
    """
    region = unet.region
    need = None if window is None else window.grown(HALO, region)
    if window is not None and window != window.grown(0, region):
        raise ValueError(f"{window} does not lie within the region of {region} pixels")
    state, shapes = arrays_of(unet), level_shapes(unet.width, region, window)
    g = GraphWriter(half)
    x = _inverted(g, state, "inc.inconv.0", "image")
    if need is None:
        x = g.rename(x, "x1")
    else:
        g.rename(g.cut(x, "x1", need), "x1")
    for i in range(1, 6):
        x = g.rename(_double(g, state, f"down{i}.maxpool_conv.0", x, stride=2), f"x{i + 1}")
    image = g.model("unet_image", {"image": (6, region, region)}, shapes)

    g = GraphWriter(half)
    audio = _audio_branch(g, state, "audio", region)
    first = "fuse_conv.0.double_conv.0"
    x = _tail(g, state, first, _split_expand(g, state, first, "x6", audio, upsample=False))
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
        inner = Rect(window.x - need.x, window.y - need.y, window.width, window.height)
        x = g.cut(x, "window", inner)
    g.rename(x, "region")
    decoder = g.model(
        "unet_decoder",
        {**shapes, "audio": AUDIO_SHAPE},
        {"region": (3, window.height, window.width) if window else (3, region, region)},
    )
    return image, decoder
