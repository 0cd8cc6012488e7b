# SPDX-License-Identifier: Apache-2.0
"""What is heard in training is what will be heard when the avatar speaks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from training import sound

from lipsync_fast.audio.windows import AudioWindow, BlockStream
from lipsync_fast.errors import AvatarFormatError, CheckpointError, TrainingError
from lipsync_fast.models.audio_encoder import AudioEncoder
from lipsync_fast.models.unet import UNet
from lipsync_fast.train.sound import Encoder, extract_features, find_encoder, mel_of

FRAMES = 10


@pytest.mark.parametrize(
    "window", [AudioWindow(), AudioWindow(before=14, after=2), AudioWindow(gain="auto")]
)
def test_blocks_are_those_of_a_render(tiny_avatar: Path, window: AudioWindow) -> None:
    encoder = find_encoder(str(tiny_avatar))
    session = ort.InferenceSession(encoder.onnx)

    def features(windows: NDArray[np.float32]) -> NDArray[np.float32]:
        made: NDArray[np.float32] = session.run(
            None, {"mel": np.ascontiguousarray(windows.transpose(0, 2, 1)[:, None])}
        )[0]
        return made

    pcm = sound(FRAMES)
    stream = BlockStream(window, features)
    blocks = [*stream.push(pcm.astype(np.float32) / 32768), *stream.finish()]
    features = extract_features(encoder, pcm, FRAMES, window, threads=1)
    assert len(blocks) == FRAMES
    for index, block in enumerate(blocks):
        np.testing.assert_allclose(
            features.block(index), block.reshape(32, 16, 16), rtol=1e-4, atol=1e-5
        )


def test_where_levels_are_evened_out_a_quiet_film_is_heard_as_a_loud_one() -> None:
    loud = sound(50).astype(np.float32) / 32768
    evened, plain = AudioWindow(gain="auto"), AudioWindow()
    apart = [
        np.abs(mel_of(loud, window)[80:] - mel_of(loud / 10, window)[80:]).mean()
        for window in (evened, plain)
    ]
    assert apart[0] < 0.2 < 1 < apart[1]


def test_a_checkpoint_becomes_the_graph_that_is_packed(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = AudioEncoder().eval()
    torch.save(network.state_dict(), tmp_path / "audio_visual_encoder.pth")
    encoder = find_encoder(str(tmp_path / "audio_visual_encoder.pth"))
    mel = np.random.default_rng(0).normal(size=(3, 1, 80, 16)).astype(np.float32)
    with torch.no_grad():
        wanted = network(torch.from_numpy(mel)).numpy()
    made = ort.InferenceSession(encoder.onnx).run(None, {"mel": mel})[0]
    np.testing.assert_allclose(made, wanted, rtol=1e-3, atol=1e-5)
    assert encoder.source == "audio_visual_encoder.pth"


def test_a_sound_that_is_too_short_is_refused(tiny_avatar: Path) -> None:
    encoder = find_encoder(str(tiny_avatar))
    with pytest.raises(TrainingError, match=r"shorter than the video: 0\.40 s for 11 frames"):
        extract_features(encoder, sound(FRAMES), FRAMES + 1, AudioWindow(), threads=1)


def test_another_network_as_audio_encoder(tmp_path: Path) -> None:
    torch.save(UNet(2, 224).state_dict(), tmp_path / "unet.pth")
    with pytest.raises(CheckpointError, match="does not fit AudioEncoder"):
        find_encoder(str(tmp_path / "unet.pth"))


def test_a_graph_of_another_shape(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["mel"], ["feature"], axis=1)],
        "flat",
        [helper.make_tensor_value_info("mel", TensorProto.FLOAT, ["n", 1, 80, 16])],
        [helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["n", 1280])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="test"
    )
    onnx.save(model, tmp_path / "flat.onnx")
    flat = Encoder((tmp_path / "flat.onnx").read_bytes(), "flat.onnx")
    with pytest.raises(CheckpointError, match=r"gives \(1280,\) for a mel window"):
        extract_features(flat, sound(FRAMES), FRAMES, AudioWindow(), threads=1)


def test_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises((CheckpointError, AvatarFormatError), match=r"x\.onnx"):
        find_encoder(str(tmp_path / "x.onnx"))


def test_nothing_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="neither a file of weights"):
        find_encoder(str(tmp_path / "audio_visual_encoder.pth"))
    with pytest.raises(TrainingError, match="neither a file of weights"):
        find_encoder("nobody")
