# SPDX-License-Identifier: Apache-2.0
"""What is heard at each frame: the frozen audio encoder's features of a prepared folder's sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from lipsync_fast._native import MelStream
from lipsync_fast.arrays import F32
from lipsync_fast.audio.gain import levelled
from lipsync_fast.audio.pcm import to_float
from lipsync_fast.audio.windows import FEATURE_SIZE, WINDOW_ROWS, AudioWindow, block_starts
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import AvatarNotFoundError, CheckpointError, TrainingError
from lipsync_fast.families.base import AUDIO_ENCODER
from lipsync_fast.families.synctalk2d import AUDIO_SHAPE
from lipsync_fast.models.checkpoints import load_audio_encoder
from lipsync_fast.models.export import export_audio_encoder
from lipsync_fast.onnx_io.check import check_network
from lipsync_fast.timing import FRAME_SAMPLES

MAX_ONNX = 1 << 30
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Encoder:
    """The audio encoder: its ONNX graph, as it will be packed, and where it came from."""

    onnx: bytes
    source: str


def find_encoder(given: str) -> Encoder:
    """The audio encoder that ``given`` names.

    Args:
        given: a checkpoint (.pth and the like), a graph (.onnx), or the name or path of an avatar
            whose encoder it shall be.

    Raises:
        CheckpointError: another network, or unreadable.
        AvatarError: an avatar that cannot be read.
        TrainingError: nothing of that name.
    """
    path = Path(given)
    if path.is_file() and path.suffix == ".onnx":
        if path.stat().st_size > MAX_ONNX:
            raise CheckpointError(f"{path}: too large for an audio encoder")
        data = path.read_bytes()
        check_network(memoryview(data), str(path), AUDIO_ENCODER)
        return Encoder(data, path.name)
    if path.is_file() and path.suffix != ".lsa":
        return Encoder(export_audio_encoder(load_audio_encoder(path)), path.name)
    try:
        found = AvatarLibrary(()).find(given)
    except AvatarNotFoundError:
        raise TrainingError(
            f"--audio-encoder {given}: neither a file of weights (audio_visual_encoder.pth, an"
            " .onnx graph) nor an avatar whose encoder could be taken"
        ) from None
    with AvatarPackage.open(found) as package:
        return Encoder(package.network("audio_encoder"), f"of the avatar {package.manifest.name}")


class AudioFeatures:
    """Audio blocks of the frames of a sound.

    Args:
        vectors: the features, one for each mel row at which a window begins.
        rows: those rows.
        window: which of them a frame sees.
        samples: of the sound.
    """

    def __init__(self, vectors: F32, rows: list[int], window: AudioWindow, samples: int) -> None:
        self._vectors, self._samples, self._window = vectors, samples, window
        self._row_index = {row: k for k, row in enumerate(rows)}

    def block(self, index: int) -> F32:
        """What a frame sees, 32 x 16 x 16."""
        out = np.zeros((WINDOW_ROWS, FEATURE_SIZE), np.float32)
        for k, row in enumerate(block_starts(index, self._window, self._samples)):
            if row >= 0:
                out[k] = self._vectors[self._row_index[row]]
        return out.reshape(AUDIO_SHAPE)


def mel_of(pcm: NDArray[np.generic], window: AudioWindow) -> F32:
    """Mel rows of a whole sound, T x 80, as an avatar with that window hears it.

    Args:
        pcm: 16 kHz mono, int16 or float.
        window: whether its level is evened out.
    """
    heard, stream = to_float(pcm), MelStream()
    if window.levelled:
        heard = levelled(heard)
    return np.concatenate([stream.push(heard), stream.finish()])


def extract_features(
    encoder: Encoder, pcm: NDArray[np.int16], frames: int, window: AudioWindow, threads: int
) -> AudioFeatures:
    """Run the encoder over a sound.

    Args:
        encoder: it.
        pcm: 16 kHz mono; 640 samples for each frame.
        frames: of the video.
        window: which feature vectors a frame sees, and whether the level is evened out.
        threads: of the processor.

    Raises:
        TrainingError: the sound is shorter than the video, or its features are no numbers.
        CheckpointError: the encoder's graph is another network.
    """
    if len(pcm) < frames * FRAME_SAMPLES:
        raise TrainingError(
            f"the sound is shorter than the video: {len(pcm) / 16_000:.2f} s for {frames} frames"
            f" ({frames / 25:.2f} s); prepare it again"
        )
    pcm = pcm[: frames * FRAME_SAMPLES]
    mel = mel_of(pcm, window)
    starts = {s for i in range(frames) for s in block_starts(i, window, len(pcm)) if s >= 0}
    rows = sorted(starts)
    vectors = np.empty((len(rows), FEATURE_SIZE), np.float32)
    session = _session(encoder, threads)
    for first in range(0, len(rows), _BATCH):
        windows = np.stack([mel[r : r + WINDOW_ROWS].T for r in rows[first : first + _BATCH]])
        vectors[first : first + _BATCH] = _run(session, encoder, windows[:, None])
    if not np.isfinite(vectors).all():
        raise TrainingError(
            f"the audio encoder ({encoder.source}) gives values that are not numbers"
        )
    return AudioFeatures(vectors, rows, window, len(pcm))


def _session(encoder: Encoder, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(encoder.onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own classes, by the kind of damage
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(
            f"audio encoder {encoder.source}: cannot be loaded: {reason}"
        ) from None
    if len(session.get_inputs()) != 1 or len(session.get_outputs()) != 1:
        raise CheckpointError(f"audio encoder {encoder.source}: expected one input and one output")
    return session


def _run(session: ort.InferenceSession, encoder: Encoder, windows: F32) -> F32:
    feed = {session.get_inputs()[0].name: np.ascontiguousarray(windows)}
    try:
        made: F32 = session.run(None, feed)[0]
    except Exception as error:  # as above
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(f"audio encoder {encoder.source}: does not run: {reason}") from None
    if made.shape != (len(windows), FEATURE_SIZE):
        raise CheckpointError(
            f"audio encoder {encoder.source}: gives {made.shape[1:]} for a mel window,"
            f" expected ({FEATURE_SIZE},)"
        )
    return made
