# SPDX-License-Identifier: Apache-2.0
"""wav2lip at its published size: the golden numbers, and frames as another way makes them.

The other way is NumPy, OpenCV and torch alone: the golden mel, the torch module, cv2's resizing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import livetalking
import numpy as np
import pytest
from golden import load
from numpy.typing import NDArray
from typer.testing import CliRunner

from lipsync_fast.geometry import Rect

torch = pytest.importorskip("torch", reason="the extra train is not installed")

import onnxruntime as ort  # noqa: E402

import lipsync_fast  # noqa: E402
from lipsync_fast.arrays import F32  # noqa: E402
from lipsync_fast.avatars.package import AvatarPackage  # noqa: E402
from lipsync_fast.cli.main import app  # noqa: E402
from lipsync_fast.families.wav2lip import WAV2LIP  # noqa: E402
from lipsync_fast.models.export_wav2lip import export_wav2lip  # noqa: E402
from lipsync_fast.onnx_io.check import check_network  # noqa: E402

TOLERANCE = 1e-4


@dataclass(frozen=True)
class World:
    """An imported avatar, and what it was made of."""

    network: Any
    folder: Path
    package: Path
    said: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """By the command line, with the checkpoint where LiveTalking has it."""
    root = tmp_path_factory.mktemp("livetalking")
    network = livetalking.network()
    folder = livetalking.folder(root / "data" / "avatars" / "ann", livetalking.frames())
    livetalking.save(network, root / "models" / "wav2lip.pth")
    done = CliRunner().invoke(
        app,
        ["avatar", "import", str(folder), "--avatars", str(root / "out"), "--sample", "0.04"],
    )
    assert done.exit_code == 0, done.output
    return World(network, folder, root / "out" / "ann", done.output)


@pytest.fixture(scope="module")
def package(world: World) -> Iterator[AvatarPackage]:
    with AvatarPackage.open(world.package) as opened:
        yield opened


def session(model: bytes | memoryview) -> ort.InferenceSession:
    return ort.InferenceSession(bytes(model), providers=["CPUExecutionProvider"])


def decoded(models: dict[str, ort.InferenceSession], image: F32, audio: F32) -> F32:
    names = [out.name for out in models["image"].get_outputs()]
    levels = models["image"].run(names, {"image": image})
    feed = dict(zip(names, levels, strict=True)) | {"audio": audio}
    made: F32 = models["decoder"].run(None, feed)[0]
    return made


def test_the_exported_graphs_give_the_golden_numbers(package: AvatarPackage) -> None:
    rng = np.random.RandomState(2)
    face = rng.rand(2, 6, 96, 96).astype(np.float32)
    mel = rng.uniform(-4, 4, (2, 1, 80, 16)).astype(np.float32)
    models = {n: session(package.network(n)) for n in ("audio_encoder", "image", "decoder")}
    audio = models["audio_encoder"].run(None, {"mel": mel})[0].reshape(2, 512, 1, 1)
    made = decoded(models, face, audio)
    assert float(np.abs(made - load("wav2lip")["out"]).max()) < TOLERANCE


def test_its_size(world: World) -> None:
    assert sum(p.numel() for p in world.network.parameters()) == 36_298_035


def test_the_import(world: World, package: AvatarPackage) -> None:
    m = package.manifest
    assert (m.family, m.width, m.region, m.crop, m.loop) == ("wav2lip", 16, 96, 96, "pingpong")
    assert m.audio.lookahead_samples == 3_400
    assert [package.rect(i) for i in range(3)] == list(livetalking.RECTS)
    assert "LiveTalking wav2lip (by full_imgs, face_imgs, coords.pkl)" in world.said
    assert "warning    the box" not in world.said
    assert (world.package.parent / "ann-import.jpg").is_file()
    for i, picture in enumerate(livetalking.frames()):
        assert np.array_equal(package.picture(i), picture)
        where = livetalking.RECTS[i].slices
        face = cv2.resize(picture[where], (96, 96), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(package.crop(i), face)


def reference(network: Any, picture: NDArray[np.uint8], rect: Rect, mel: F32) -> Any:
    """A frame by cv2 and torch: H x W x 3 RGB."""
    where = rect.slices
    bgr = picture[..., ::-1].copy()
    face = cv2.resize(bgr[where], (96, 96))
    masked = face.copy()
    masked[48:] = 0
    image = np.concatenate([masked, face], axis=2).astype(np.float32) / 255
    with torch.inference_mode():
        made = network(
            torch.from_numpy(image.transpose(2, 0, 1)[None].copy()),
            torch.from_numpy(mel.T[None, None].copy()),
        )[0]
    small = (made.numpy().transpose(1, 2, 0) * 255).astype(np.uint8)
    bgr[where] = cv2.resize(small, rect.size)
    return bgr[..., ::-1]


def test_rendered_frames_are_the_reference_s(world: World) -> None:
    """From the beginning to the end of a sound, where the last mel rows serve several frames."""
    audio = load("audio")
    pcm = audio["pcm16k"][: 14 * 640 + 100]
    with lipsync_fast.open(world.package, backend="cpu") as avatar:
        made = [frame.image for frame in avatar.render(pcm, 16_000)]
    assert len(made) == 15
    from lipsync_fast.audio import mel_numpy

    mel = mel_numpy.mel(pcm.astype(np.float32) / 32768)
    pictures, loop = livetalking.frames(), [0, 1, 2, 1]
    for i in (0, 1, 9, 12, 14):
        row = min(int(3.2 * i), len(mel) - 16)
        index = loop[i % 4]
        wanted = reference(
            world.network, pictures[index], livetalking.RECTS[index], mel[row : row + 16]
        )
        far = np.abs(made[i].astype(int) - wanted)
        assert far.max() <= 2, f"frame {i}: {far.max()}"
    for a, b in ((0, 4), (4, 8)):
        assert np.abs(made[a].astype(int) - made[b]).max() > 0, "the sound changes the face"


def test_the_network_of_256_pixels() -> None:
    """Its parts' shapes, and torch and the exported graphs agree."""
    network = livetalking.network(2, 256)
    published = published_shapes(256)
    assert published["face_encoder_blocks.6.0.conv_block.0.weight"] == (512, 512, 3, 3)
    assert published["face_encoder_blocks.7.0.conv_block.0.weight"] == (512, 512, 4, 4)
    assert published["face_decoder_blocks.1.0.conv_block.0.weight"] == (1024, 512, 4, 4)
    assert published["face_decoder_blocks.3.0.conv_block.0.weight"] == (1024, 512, 3, 3)
    assert published["face_decoder_blocks.4.0.conv_block.0.weight"] == (768, 384, 3, 3)
    assert published["face_decoder_blocks.7.0.conv_block.0.weight"] == (160, 64, 3, 3)
    assert "face_decoder_blocks.2.2.conv_block.0.weight" not in published
    image_model, decoder_model = export_wav2lip(network)
    for model in (image_model, decoder_model):
        check_network(model, "the exported network")
    rng = np.random.default_rng(5)
    image = rng.random((1, 6, 256, 256), np.float32)
    mel = rng.uniform(-4, 4, (1, 1, 80, 16)).astype(np.float32)
    with torch.inference_mode():
        levels = network.encode_image(torch.from_numpy(image))
        audio = network.audio_encoder(torch.from_numpy(mel))
        wanted = network.decode(levels, audio).numpy()
    shapes = {f"x{k}": tuple(level.shape[1:]) for k, level in enumerate(levels, 1)}
    assert shapes == WAV2LIP.levels(2, 256, None)
    models = {"image": session(image_model), "decoder": session(decoder_model)}
    made = decoded(models, image, audio.numpy())
    assert made.shape == (1, 3, 256, 256)
    assert float(np.abs(made - wanted).max()) < TOLERANCE
    assert float(wanted.std()) > 0.01


def published_shapes(region: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a network of the published width."""
    from lipsync_fast.models.wav2lip import Wav2Lip

    with torch.device("meta"):
        return {n: tuple(t.shape) for n, t in Wav2Lip(16, region).state_dict().items()}
