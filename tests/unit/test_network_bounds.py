# SPDX-License-Identifier: Apache-2.0
"""Networks that are plain and far too dear: refused before any runtime gets to see them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="the extra train is not installed")
torch = pytest.importorskip("torch", reason="the extra train is not installed")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from lipsync_fast.errors import AvatarFormatError  # noqa: E402
from lipsync_fast.families import FAMILIES  # noqa: E402
from lipsync_fast.families.base import AUDIO_ENCODER  # noqa: E402
from lipsync_fast.models.audio_encoder import AudioEncoder  # noqa: E402
from lipsync_fast.models.export import export_audio_encoder, export_unet  # noqa: E402
from lipsync_fast.models.export_wav2lip import export_wav2lip  # noqa: E402
from lipsync_fast.models.unet import UNet  # noqa: E402
from lipsync_fast.models.wav2lip import Wav2Lip  # noqa: E402
from lipsync_fast.onnx_io.check import check_network  # noqa: E402
from lipsync_fast.untrusted.limits import Need  # noqa: E402

REGION = 320
NEED = FAMILIES["synctalk2d"].need("image", 32, REGION)


class Maker:
    """A graph on ``image``, 6 x 320 x 320."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, *values: float, kind: type = np.float32) -> str:
        return self.array(np.array(values, kind))

    def array(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        made = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [*inputs], [made], **attributes))
        return made

    def first(self, x: str, rank: int = 4) -> str:
        """The first number of a tensor, so that what is large inside is small outside."""
        starts, ends = [0] * (rank - 1), [1] * (rank - 1)
        lists = (self.constant(*v, kind=np.int64) for v in (starts, ends, range(1, rank)))
        return self.node("Slice", x, *lists)

    def model(self, output: str) -> bytes:
        info = helper.make_tensor_value_info
        inputs = [info("image", TensorProto.FLOAT, ["batch", 6, REGION, REGION])]
        outputs = [info(output, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", 17)]
        made: bytes = helper.make_model(
            graph, opset_imports=opsets, ir_version=9
        ).SerializeToString()
        return made


def folded(kind: str = "Sigmoid") -> bytes:
    """Constants of 4 MiB that a runtime makes 30 times 484 MiB of when it loads the file."""
    g = Maker()
    x = g.node(
        "Resize", g.array(np.ones((1, 1, 1024, 1024), np.float32)), "", g.constant(1, 1, 11, 11)
    )
    for _ in range(30):
        x = g.node(kind, x, x) if kind == "Add" else g.node(kind, x)
    return g.model(g.node("Mul", "image", g.first(x)))


def folded_a_little() -> bytes:
    g = Maker()
    x = g.array(np.ones((1, 16, 64, 64), np.float32))
    for _ in range(3):
        x = g.node("Relu", x)
    return g.model(g.node("Mul", "image", g.first(x)))


def spread(side: int) -> bytes:
    """A transposed convolution of 1 MiB: its windows side by side are side^2 x 512^2 numbers."""
    g = Maker()
    lists = [g.constant(*v, kind=np.int64) for v in ([0, 0, 0], [1, side, side], [1, 2, 3])]
    small = g.node("Slice", "image", *lists)
    return g.model(g.node("ConvTranspose", small, g.array(np.ones((1, 1, 512, 512), np.float32))))


def thin() -> bytes:
    """One channel, in memory sixteen: each of many tensors as large as a tensor may be."""
    g = Maker()
    x = g.node("Conv", "image", g.array(np.ones((1, 6, 1, 1), np.float32)))
    parts = [g.node("Resize", x, "", g.constant(1, 1, 4, 4))]
    parts += [g.node("Relu", parts[0]) for _ in range(6)]
    total = parts[0]
    for part in reversed(parts):
        total = g.node("Add", total, part)
    return g.model(g.first(total))


def slow() -> bytes:
    """Within the general bound of multiplications: half a minute for a frame."""
    g = Maker()
    weights = g.array(np.ones((64, 6, 110, 110), np.float32))
    return g.model(g.node("Conv", "image", weights, pads=[55, 55, 54, 54]))


def many_steps() -> bytes:
    """As many cheap operators as may be, on tensors as large as they may be."""
    g = Maker()
    x = g.node("Resize", "image", "", g.constant(1, 1, 2, 2))
    for _ in range(1900):
        x = g.node("Sigmoid", x)
    return g.model(g.first(x))


def heavy() -> bytes:
    g = Maker()
    weights = g.array(np.zeros((3, 6, 600, 600), np.float32))
    return g.model(g.node("Conv", "image", weights, pads=[300] * 4))


def cubic() -> bytes:
    g = Maker()
    return g.model(g.node("Resize", "image", "", g.constant(1, 1, 2, 2), mode="cubic"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            folded,
            r"Resize makes \(1, 1, 11264, 11264\) of constants; expected no more than there are",
        ),
        (lambda: folded("Add"), "of constants; expected no more than there are"),
        (folded_a_little, "Relu makes .* of constants; expected no more than there are"),
        (lambda: spread(128), "ConvTranspose needs 4294967296 numbers while it runs"),
        (lambda: spread(64), "ConvTranspose needs 1073741824 numbers while it runs"),
        (thin, "at one time"),
        (slow, "multiplications in one run"),
        (many_steps, "multiplications in one run"),
        (heavy, "weights; expected at most"),
        (cubic, "Resize whose inputs or attributes do not fit"),
    ],
)
def test_what_is_dear_is_refused(make: Callable[[], bytes], words: str) -> None:
    with pytest.raises(AvatarFormatError, match=words):
        check_network(make(), "image.onnx", NEED)


@pytest.mark.parametrize("make", [folded, lambda: spread(128)])
def test_what_is_dear_is_refused_where_no_family_is_known(make: Callable[[], bytes]) -> None:
    with pytest.raises(AvatarFormatError, match=r"image\.onnx cannot be used"):
        check_network(make(), "image.onnx")


def assert_fits(model: bytes, need: Need) -> None:
    """It passes, and would not if its family needed an eighth of what it says."""
    check_network(model, "x.onnx", need)
    for name, value in need._asdict().items():
        with pytest.raises(AvatarFormatError):
            check_network(model, "x.onnx", need._replace(**{name: value // 8}))


@pytest.mark.slow
@pytest.mark.parametrize(("width", "region"), [(2, 224), (32, 320)])
def test_synctalk_says_what_it_needs(width: int, region: int) -> None:
    rules = FAMILIES["synctalk2d"]
    with torch.no_grad():
        image, decoder = export_unet(UNet(width, region).eval())
        half, _ = export_unet(UNet(width, region).eval(), half=True)
    assert_fits(image, rules.need("image", width, region))
    assert_fits(decoder, rules.need("decoder", width, region))
    check_network(half, "x.onnx", rules.need("image", width, region))  # weights are converted


@pytest.mark.slow
@pytest.mark.parametrize(("width", "region"), [(16, 96), (2, 256)])
def test_wav2lip_says_what_it_needs(width: int, region: int) -> None:
    rules = FAMILIES["wav2lip"]
    with torch.no_grad():
        image, decoder = export_wav2lip(Wav2Lip(width, region).eval())
    assert_fits(image, rules.need("image", width, region))
    assert_fits(decoder, rules.need("decoder", width, region))


def test_the_audio_encoder_says_what_it_needs() -> None:
    for rules in FAMILIES.values():
        assert rules.need("audio_encoder", 2, 320) == AUDIO_ENCODER
    assert_fits(export_audio_encoder(AudioEncoder().eval()), AUDIO_ENCODER)
