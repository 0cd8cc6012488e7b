# SPDX-License-Identifier: Apache-2.0
"""What wav2lip's networks cost in ONNX Runtime, on one thread: ``python bench/micro/wav2lip.py``.

Weights are random: they cost what trained ones cost. The image half is run once for each of the
avatar's frames, the audio encoder and the decoder once for each frame that speaks.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnxruntime as ort
import torch

from lipsync_fast.families.wav2lip import ENCODERS, PUBLISHED_WIDTH, WAV2LIP
from lipsync_fast.models.audio_encoder import AudioEncoder
from lipsync_fast.models.export import export_audio_encoder
from lipsync_fast.models.export_wav2lip import export_wav2lip
from lipsync_fast.models.wav2lip import Wav2Lip


def session(model: bytes) -> ort.InferenceSession:
    """As the CPU backend makes it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_free_dimension_override_by_name("batch", 1)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--region", type=int, choices=list(ENCODERS), default=96)
    asked = parser.parse_args()
    torch.manual_seed(1)
    network = Wav2Lip(PUBLISHED_WIDTH, asked.region).eval()
    image, decoder = export_wav2lip(network)
    encoder = export_audio_encoder(AudioEncoder().eval())
    rng, side = np.random.default_rng(1), asked.region
    shapes = WAV2LIP.levels(PUBLISHED_WIDTH, side, None) | {"audio": WAV2LIP.audio_shape}
    for name, model, given in (
        ("audio encoder", encoder, {"mel": (1, 80, 16)}),
        ("image half", image, {"image": (6, side, side)}),
        ("decoder", decoder, shapes),
    ):
        run = session(model)
        feed = {n: rng.random((1, *shape), np.float32) for n, shape in given.items()}
        times = []
        for _ in range(asked.runs):
            begun = time.perf_counter()
            run.run(None, feed)
            times.append(1e3 * (time.perf_counter() - begun))
        print(f"{name:<14} median {np.median(times):6.1f} ms   fastest {min(times):6.1f} ms")


if __name__ == "__main__":
    main()
