# SPDX-License-Identifier: Apache-2.0
"""Write wav2lip's networks as ONNX graphs (extra ``train``), with batch norms folded."""

from __future__ import annotations

from collections.abc import Mapping

from lipsync_fast.families.wav2lip import DECODERS, ENCODERS, WAV2LIP, Stage
from lipsync_fast.models.wav2lip import Wav2Lip
from lipsync_fast.onnx_io.writer import Array, GraphWriter, arrays_of, fold


def _conv(
    g: GraphWriter,
    state: Mapping[str, Array],
    name: str,
    x: str,
    stride: int = 1,
    padding: int = 1,
    residual: bool = False,
) -> str:
    """Convolution, (+ input), ReLU."""
    weight, bias = fold(state, f"{name}.conv_block.0", f"{name}.conv_block.1")
    y = g.conv(x, name, weight, bias, (stride, stride), padding)
    return g.relu(g.add(y, x) if residual else y)


def _residuals(g: GraphWriter, state: Mapping[str, Array], name: str, x: str, stage: Stage) -> str:
    for k in range(1, stage.residual + 1):
        x = _conv(g, state, f"{name}.{k}", x, residual=True)
    return x


def _spread(g: GraphWriter, state: Mapping[str, Array], name: str, x: str, before: Stage) -> str:
    """Transposed convolution, ReLU: from one pixel to the smallest map, or to twice the map."""
    conv, norm = f"{name}.conv_block.0", f"{name}.conv_block.1"
    weight, bias = fold(state, conv, norm, transposed=True)
    if before.side == 1:
        return g.relu(g.spread(x, name, weight, bias))
    return g.relu(g.spread(x, name, weight, bias, 2, 1, 1))


def export_wav2lip(network: Wav2Lip, half: bool = False) -> tuple[bytes, bytes]:
    """ONNX of the face networks, as two graphs.

    Args:
        network: the torch module; its running statistics are folded in.
        half: store the weights in float16.

    Returns:
        The image half, ``image`` batch x 6 x R x R to ``x1`` .. (``Family.levels``); and the
        decoder, those and ``audio`` batch x 512 x 1 x 1 to ``region`` batch x 3 x R x R.
    """
    region, state = network.region, arrays_of(network)
    levels = WAV2LIP.levels(network.width, region, None)
    g, x, last = GraphWriter(half), "image", len(levels) - 1
    for k, (level, stage) in enumerate(zip(levels, ENCODERS[region], strict=True)):
        name = f"face_encoder_blocks.{k}"
        if k == 0:
            x = _conv(g, state, f"{name}.0", x, padding=3)
        elif k == last:
            x = _conv(g, state, f"{name}.0", x, padding=0)
            x = _conv(g, state, f"{name}.1", x, padding=0)
        else:
            x = _residuals(g, state, name, _conv(g, state, f"{name}.0", x, stride=2), stage)
        x = g.rename(x, level)
    image = g.model("wav2lip_image", {"image": (6, region, region)}, levels)

    g = GraphWriter(half)
    name, stages = "face_decoder_blocks", DECODERS[region]
    x = _conv(g, state, f"{name}.0.0", "audio", padding=0)
    for k, (stage, level) in enumerate(zip(stages, reversed(levels), strict=True)):
        if k > 0:
            x = _spread(g, state, f"{name}.{k}.0", x, stages[k - 1])
            x = _residuals(g, state, f"{name}.{k}", x, stage)
        x = g.node("Concat", x, level, axis=1)
    x = _conv(g, state, "output_block.0", x)
    x = g.conv(x, "output_block.1", state["output_block.1.weight"], state["output_block.1.bias"])
    g.rename(g.node("Sigmoid", x), "region")
    given = {**levels, "audio": WAV2LIP.audio_shape}
    return image, g.model("wav2lip_decoder", given, {"region": WAV2LIP.output(region, None)})
