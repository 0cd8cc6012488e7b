# SPDX-License-Identifier: Apache-2.0
"""A client's PCM in pieces of any size, and its echo."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_fast.audio.pcm import Resampler
from lipsync_fast.frontend.session.client_audio import ClientAudio
from lipsync_fast_client.protocol import AudioFormat


def cut(data: bytes, seed: int) -> list[bytes]:
    rng, pieces = np.random.default_rng(seed), []
    while data:
        size = int(rng.integers(1, 3000))
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 192_000]),
    kind=st.sampled_from(["s16le", "f32le"]),
    channels=st.integers(1, 2),
    seed=st.integers(0, 1 << 30),
)
def test_however_it_is_cut(rate: int, kind: str, channels: int, seed: int) -> None:
    """Odd bytes are completed by the next piece; the samples are those of one piece."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6000))
    loud = rng.uniform(-0.9, 0.9, (count, channels)).astype(np.float32)
    pcm = (loud * 32767).astype("<i2") if kind == "s16le" else loud
    form = AudioFormat(sample_rate=rate, format=kind, channels=channels)  # type: ignore[arg-type]
    sound, whole = ClientAudio(form, True), ClientAudio(form, True)
    got = []
    for piece in cut(pcm.tobytes(), seed):
        got.append(sound.push(piece))
        sound.keep(1)
    one = [whole.push(pcm.tobytes())]
    whole.keep(1)
    got.append(sound.finish())
    one.append(whole.finish())
    np.testing.assert_array_equal(np.concatenate(got), np.concatenate(one))
    assert sum(map(len, got)) == -(-count * 16_000 // rate)
    frames = -(-count * 25 // rate)
    echo = b"".join(sound.echo(1, k) for k in range(frames))
    assert len(echo) == 2 * count
    mono = pcm.astype(np.float32).mean(axis=1) / (32768 if kind == "s16le" else 1)
    np.testing.assert_allclose(np.frombuffer(echo, "<i2") / 32768, mono, atol=1.01 / 32768)


def test_frames_of_the_echo_are_40_ms_wherever_it_begins() -> None:
    sound = ClientAudio(AudioFormat(sample_rate=8_000), True)
    pcm = np.arange(8_000, dtype="<i2")
    sound.push(pcm.tobytes())
    sound.keep(3)
    assert np.frombuffer(sound.echo(3, 2), "<i2")[0] == 640
    assert sound.echo(3, 1) == b"", "what has been given is forgotten"
    assert np.frombuffer(sound.echo(3, 24), "<i2")[-1] == 7_999
    assert sound.echo(3, 25) == b""
    sound.forget_echo(3)
    assert sound.echo(3, 3) == b""


def test_not_finite_is_silence() -> None:
    sound = ClientAudio(AudioFormat(format="f32le"), True)
    bad = np.array([np.nan, np.inf, -np.inf, 0.5, 7.0], np.float32)
    np.testing.assert_array_equal(sound.push(bad.tobytes()), np.float32([0, 0, 0, 0.5, 1]))
    sound.keep(1)
    echo = np.frombuffer(sound.echo(1, 0), "<i2")
    assert echo[0] == 0
    assert echo[3] == 16_384
    assert echo[4] == 32_767


def test_a_new_utterance_is_resampled_by_itself() -> None:
    form = AudioFormat(sample_rate=48_000)
    sound = ClientAudio(form, False)
    pcm = np.random.default_rng(1).integers(-9000, 9000, 4_801).astype("<i2")
    for _ in range(2):
        got = np.concatenate([sound.push(pcm.tobytes()), sound.finish()])
        alone = Resampler(48_000)
        floats = (pcm / 32768).astype(np.float32)
        expected = np.concatenate([alone.push(floats), alone.finish()])
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("reset", [False, True])
def test_a_torn_sample_does_not_reach_the_next_utterance(reset: bool) -> None:
    sound = ClientAudio(AudioFormat(), False)
    sound.push(b"\x01\x02\x03")
    if reset:
        sound.reset()
    else:
        sound.finish()
    assert len(sound.push(b"\x10\x20")) == 1
