# SPDX-License-Identifier: Apache-2.0
"""What of a mouth can be heard, and which sounds are heard as which mouth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from films import FRAMES, RECT, meshes, openings, pcm

from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.models.audio_encoder import AudioEncoder
from lipsync_fast.models.packed import packed_encoder
from lipsync_fast.train.data import split
from lipsync_fast.train.hearing import (
    LEVELS_DB,
    Hearing,
    Kernel,
    Sounds,
    Tuning,
    features_of,
    roughened,
    sounds_to_choose_from,
    told,
    variant,
)
from lipsync_fast.train.mouths import MEASURES, Mouths
from lipsync_fast.train.sound import Encoder, extract_features, mel_of

CPU = torch.device("cpu")
WINDOW = AudioWindow(before=14, after=2)


@pytest.fixture(scope="module")
def graph(tiny_avatar: Path) -> bytes:
    with AvatarPackage.open(tiny_avatar) as package:
        return bytes(package.network("audio_encoder"))


@pytest.fixture
def encoder(graph: bytes) -> AudioEncoder:
    return packed_encoder(graph, "tiny")


@pytest.fixture(scope="module")
def mouths() -> Mouths:
    return Mouths(meshes(openings()), [RECT] * FRAMES, 224, split(FRAMES)[0])


def windows_of(count: int, seed: int) -> np.ndarray:
    """Mel windows of some loudness each."""
    rng = np.random.default_rng(seed)
    level = rng.uniform(-2, 2, (count, 1, 1))
    return (level + 0.3 * rng.standard_normal((count, 16, 80))).astype(np.float32)


def test_a_kernel_machine_foretells_what_it_has_not_seen() -> None:
    rng = np.random.default_rng(0)
    seen, unseen = windows_of(200, 1), windows_of(50, 2)
    wanted = seen.mean((1, 2))
    measures = np.zeros((200, MEASURES), np.float32)
    measures[:, 0] = wanted / wanted.std()
    measures[:, 1] = rng.standard_normal(200)
    shut = np.full(MEASURES, -3, np.float32)
    kernel = Kernel(seen, measures, shut, rng)
    made = kernel(unseen)
    assert np.corrcoef(made[:, 0], unseen.mean((1, 2)))[0, 1] > 0.95
    assert kernel.hearable[0] > 0.95
    assert kernel.hearable[1] < 0.3
    assert 1 <= kernel.gain[0] < 1.2 < kernel.gain[1] <= 2
    quiet = np.full((1, 16, 80), -3.6, np.float32)
    np.testing.assert_allclose(kernel(quiet)[0], shut, atol=0.3)


def test_features_and_blocks_are_those_of_an_avatar(graph: bytes, encoder: AudioEncoder) -> None:
    sound = pcm(openings(40, 5))
    heard = extract_features(Encoder(graph, "tiny"), sound, 40, WINDOW, 1)
    mine = Sounds([features_of(encoder, mel_of(sound, WINDOW), CPU)], WINDOW)
    for frame in range(36):  # the last ones see what is behind the sound
        np.testing.assert_allclose(mine.block(frame), heard.block(frame), atol=1e-3)


def test_tuning_learns_what_the_kernel_machine_knows(encoder: AudioEncoder, mouths: Mouths) -> None:
    tuning = Tuning(encoder, mel_of(pcm(openings()), WINDOW), mouths, CPU, seed=3, steps=12)
    assert tuning.kernel.hearable[0] > 0.7
    first = [tuning.step(k) for k in range(12)]
    assert np.mean(first[-3:]) < 0.8 * np.mean(first[:3])
    windows = windows_of(6, 8).transpose(0, 2, 1)[:, None].copy()
    with torch.no_grad():
        known = tuning._head(tuning._ears(torch.from_numpy(windows)).flatten(1)).numpy()
        hearing = tuning.done()
        vectors = hearing.encoder(torch.from_numpy(windows)).numpy()
    assert known.min() > -4
    read = told(vectors, 2)  # a frame's is the vector two before it; the first stands for two more
    np.testing.assert_allclose(read, known[[0, 0, 0, 1, 2, 3]][: len(read)], atol=1e-4)
    np.testing.assert_allclose(told(vectors, 0), known[: len(read)], atol=1e-4)
    back = Hearing.restored(saved(hearing.state()))
    assert back.lag == hearing.lag == tuning.lag
    for name in ("hearable", "gain", "told_mean", "shut"):
        np.testing.assert_array_equal(getattr(back, name), getattr(hearing, name))
    mel = mel_of(pcm(openings(20, 2)), WINDOW)
    np.testing.assert_array_equal(
        features_of(back.encoder, mel, CPU), features_of(hearing.encoder, mel, CPU)
    )


def test_which_vector_tells_of_a_frame_follows_the_film(
    encoder: AudioEncoder, mouths: Mouths
) -> None:
    """The later a film's sound, the later the window in which a mouth is heard begins."""
    heard = mel_of(pcm(openings()), WINDOW)
    early, late = np.roll(heard, -7, 0), np.roll(heard, 7, 0)
    lags = [Tuning(encoder, mel, mouths, CPU, seed=3, steps=1).lag for mel in (early, late)]
    assert lags == [2, 0]


def saved(state: dict[str, object]) -> dict[str, dict[str, torch.Tensor]]:
    """Through a file and back."""
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)  # type: ignore[no-any-return]


def test_sounds_to_choose_from_and_what_is_heard_in_them(encoder: AudioEncoder) -> None:
    torch.manual_seed(0)
    mel = mel_of(pcm(openings()), WINDOW)
    ones = np.ones(MEASURES, np.float32)
    hearing = Hearing(encoder, 1, ones, ones, 0 * ones, -ones)
    sounds, heard = sounds_to_choose_from(hearing, mel, [(0, 60), (72, 150)], WINDOW, seed=1)
    assert len(sounds) == len(heard)
    assert len(sounds) > 3 * FRAMES
    assert sounds.block(len(sounds) - 1).shape == (32, 16, 16)
    assert told(features_of(encoder, mel, CPU), 1).shape == (FRAMES, MEASURES)


def test_roughened_windows_and_variants_stay_in_range() -> None:
    rng = np.random.default_rng(2)
    mel = windows_of(1, 5)[0]
    for _ in range(60):
        made = roughened(mel, rng, LEVELS_DB)
        assert made.shape == mel.shape
        assert made.dtype == np.float32
        assert np.abs(made).max() < 6
    long = np.repeat(mel, 20, 0)
    lengths = {len(variant(long, rng)) for _ in range(8)}
    assert len(lengths) > 3
    assert all(0.78 * len(long) < n < 1.27 * len(long) for n in lengths)
