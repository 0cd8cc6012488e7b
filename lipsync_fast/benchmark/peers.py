# SPDX-License-Identifier: Apache-2.0
"""The ways of working that lipsync-fast replaces, written as straightforwardly as they are found.

(a) ``TorchPeer``: a request is a frame; the whole network in PyTorch, eagerly; the whole picture
    is encoded.
(b) ``OnnxPeer``: the same through ONNX Runtime.
(c) ``BatchedOnnxPeer``: a whole recording, offline, in batches; nothing is kept between them.

All take the avatar's frames decoded and its sound as samples, as these programs hold them in
memory. They need the extra ``train``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.arrays import F32, U8
from lipsync_fast.audio.windows import WINDOW_ROWS, block_starts
from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark.reference import Networks
from lipsync_fast.families.synctalk2d import REGION_BORDER

BATCH = 8
"""Frames in a batch of (c)."""


class Peer(Protocol):
    """Something that makes frames of one sound."""

    name: str

    def pictures(self, numbers: Sequence[int]) -> Iterator[U8]:
        """These frames, in order, H x W x 3 uint8 RGB."""
        ...


def jpegs(peer: Peer, scene: Scene, numbers: Sequence[int]) -> Iterator[bytes]:
    """These frames of a peer as JPEGs, each encoded as a whole."""
    for picture in peer.pictures(numbers):
        yield encode_frame(picture, scene.manifest.jpeg)


class Scene:
    """An avatar's frames in memory and a sound, as peers have them.

    Args:
        package: the avatar.
        pcm: 16 kHz mono.
    """

    def __init__(self, package: AvatarPackage, pcm: F32) -> None:
        self.manifest = package.manifest
        count = self.manifest.frame_count
        self.pictures = [package.picture(k) for k in range(count)]
        self.rects = [package.rect(k) for k in range(count)]
        self.pcm = pcm

    def mel_windows(self, frame: int) -> F32:
        """The 16 windows that a frame sees, of its own piece of sound: 16 x 1 x 80 x 16."""
        starts = block_starts(frame, self.manifest.audio, len(self.pcm))
        first = min(s for s in starts if s >= 0)
        last = max(starts) + WINDOW_ROWS
        rows = _native.mel_rows_at(self.pcm, 0, first, last - first)
        windows = np.zeros((16, 1, 80, 16), np.float32)
        for k, start in enumerate(starts):
            if start >= 0:
                windows[k, 0] = rows[start - first : start - first + WINDOW_ROWS].T
        return windows

    def heard(self, frame: int) -> NDArray[np.bool_]:
        """Which of the 16 are sound, and not what lies before or behind it."""
        return np.array(block_starts(frame, self.manifest.audio, len(self.pcm))) >= 0

    def crop(self, frame: int) -> tuple[int, U8]:
        """The avatar's frame under a frame, and its face as the network wants it."""
        index = self.manifest.avatar_frame(frame)
        side = self.manifest.crop
        rect = self.rects[index]
        return index, _native.resize_cubic(self.pictures[index][rect.slices], side, side)

    def composed(self, index: int, crop: U8, region: F32) -> U8:
        """The whole picture with a generated region in it."""
        frame = self.pictures[index].copy()
        made = _native.region_output(region)
        corner = (REGION_BORDER, REGION_BORDER)
        _native.compose(crop, made, corner, frame, self.rects[index].corners, None)
        return frame


class TorchPeer:
    """(a): one request, one frame, the whole network in PyTorch's eager mode."""

    name = "PyTorch, frame by frame"

    def __init__(self, scene: Scene, networks: Networks) -> None:
        self._scene, self._networks = scene, networks

    def pictures(self, numbers: Sequence[int]) -> Iterator[U8]:
        """These frames, in order."""
        import torch

        scene = self._scene
        for number in numbers:
            with torch.no_grad():
                mel = torch.from_numpy(scene.mel_windows(number))
                features = self._networks.audio_encoder(mel)
                features[~torch.from_numpy(scene.heard(number))] = 0
                index, crop = scene.crop(number)
                image = torch.from_numpy(_native.region_input(crop, REGION_BORDER)[None])
                region = self._networks.unet(image, features.reshape(1, 32, 16, 16))
            yield scene.composed(index, crop, region[0].numpy())


class OnnxPeer:
    """(b): the same through ONNX Runtime, with all processors for each run."""

    name = "ONNX Runtime, frame by frame"

    def __init__(self, scene: Scene, networks: Networks) -> None:
        self._scene = scene
        self._encoder, self._unet = _sessions(networks)

    def pictures(self, numbers: Sequence[int]) -> Iterator[U8]:
        """These frames, in order."""
        scene = self._scene
        for number in numbers:
            features = self._encoder.run(None, {"mel": scene.mel_windows(number)})[0]
            features[~scene.heard(number)] = 0
            index, crop = scene.crop(number)
            feed = {
                "image": _native.region_input(crop, REGION_BORDER)[None],
                "audio": features.reshape(1, 32, 16, 16),
            }
            yield scene.composed(index, crop, self._unet.run(None, feed)[0][0])


class BatchedOnnxPeer:
    """(c): offline: all of the sound's features first, then batches of frames."""

    name = f"ONNX Runtime, offline, batches of {BATCH}"

    def __init__(self, scene: Scene, networks: Networks) -> None:
        self._scene = scene
        self._encoder, self._unet = _sessions(networks)

    def pictures(self, numbers: Sequence[int]) -> Iterator[U8]:
        """These frames, in order."""
        scene = self._scene
        window = scene.manifest.audio
        starts = [block_starts(k, window, len(scene.pcm)) for k in numbers]
        wanted = sorted({s for row in starts for s in row if s >= 0})
        count = wanted[-1] + WINDOW_ROWS - wanted[0]
        rows = _native.mel_rows_at(scene.pcm, 0, wanted[0], count)
        vectors: dict[int, F32] = {}
        for at in range(0, len(wanted), 16):
            some = wanted[at : at + 16]
            mel = np.stack([rows[s - wanted[0] :][:WINDOW_ROWS].T[None] for s in some])
            vectors |= zip(some, self._encoder.run(None, {"mel": mel})[0], strict=True)
        silence = np.zeros(512, np.float32)
        for at in range(0, len(numbers), BATCH):
            some_frames = numbers[at : at + BATCH]
            crops = [scene.crop(k) for k in some_frames]
            feed = {
                "image": np.stack([_native.region_input(c, REGION_BORDER) for _, c in crops]),
                "audio": np.stack(
                    [
                        np.stack([vectors[s] if s >= 0 else silence for s in row])
                        for row in starts[at : at + BATCH]
                    ]
                ).reshape(-1, 32, 16, 16),
            }
            made = self._unet.run(None, feed)[0]
            for (index, crop), region in zip(crops, made, strict=True):
                yield scene.composed(index, crop, region)


def _sessions(networks: Networks) -> tuple[ort.InferenceSession, ort.InferenceSession]:
    """Sessions of the audio encoder and the U-Net, a peer's own."""
    encoder, unet = (
        ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        for graph in _exported(networks)
    )
    return encoder, unet


@lru_cache(maxsize=1)
def _exported(networks: Networks) -> tuple[bytes, bytes]:
    """The networks as their projects export them: each as one graph, for any batch."""
    import torch

    def graph(module: torch.nn.Module, inputs: dict[str, Any]) -> bytes:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            dynamic_axes={name: {0: "batch"} for name in inputs},
            opset_version=17,
            dynamo=False,
        )
        return path.read_bytes()

    region = networks.unet.region
    frame = {"image": torch.zeros(1, 6, region, region), "audio": torch.zeros(1, 32, 16, 16)}
    with tempfile.TemporaryDirectory(prefix="lipsync-bench-") as folder:
        encoder = graph(networks.audio_encoder, {"mel": torch.zeros(1, 1, 80, 16)})
        return encoder, graph(networks.unet, frame)
