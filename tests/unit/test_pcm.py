# SPDX-License-Identifier: Apache-2.0
"""PCM of every kind to 16 kHz mono: levels, lengths, odd values, and pieces of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_fast.audio.pcm import Resampler, check_rate, to_float, to_mono
from lipsync_fast.errors import AudioFormatError


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [(np.int16, 16384, 0.5), (np.int16, -32768, -1.0), (np.int32, 1 << 30, 0.5),
     (np.uint8, 192, 0.5), (np.uint8, 128, 0.0), (np.float64, 0.25, 0.25), (np.int8, 64, 0.5)],
)  # fmt: skip
def test_levels(dtype: type, value: float, expected: float) -> None:
    out = to_float(np.array([value], dtype))
    assert out.dtype == np.float32
    assert out[0] == expected


@pytest.mark.parametrize("bad", [np.zeros(3, bool), np.zeros(3, complex), np.array(["a"])])
def test_other_types_are_refused(bad: np.ndarray) -> None:  # type: ignore[type-arg]
    with pytest.raises(AudioFormatError, match="dtype"):
        to_float(bad)


def test_mono_is_the_mean_of_the_channels() -> None:
    stereo = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    assert to_mono(stereo).tolist() == [0.5, 0.5]
    with pytest.raises(AudioFormatError, match="shape"):
        to_mono(np.zeros((2, 2, 2), np.float32))


@pytest.mark.parametrize("bad", [0, -1, 3_999, 1e9, 16000.5, "16000", None, True, float("nan")])
def test_bad_rates_are_refused(bad: object) -> None:
    with pytest.raises(AudioFormatError, match="rate"):
        check_rate(bad)


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000]),
    length=st.integers(1, 40_000),
    sizes=st.lists(st.integers(0, 20_000), max_size=6),
)
def test_length_and_pieces(rate: int, length: int, sizes: list[int]) -> None:
    pcm = np.sin(np.arange(length) * 440 * 2 * np.pi / rate).astype(np.float32) * 0.5
    outs = []
    for cuts in ([], sizes):
        r, at, parts = Resampler(rate), 0, []
        for size in cuts:
            parts.append(r.push(pcm[at : at + size]))
            at += size
        parts += [r.push(pcm[at:]), r.finish()]
        outs.append(np.concatenate(parts))
    assert len(outs[0]) == -(-length * 16_000 // rate)
    assert np.array_equal(outs[0], outs[1])


def test_a_tone_keeps_its_phase_through_resampling() -> None:
    for rate in (8_000, 44_100, 48_000):
        t = np.arange(rate)
        r = Resampler(rate)
        pcm = (0.5 * np.sin(2 * np.pi * 300 * t / rate)).astype(np.float32)
        out = np.concatenate([r.push(pcm), r.finish()])
        true = 0.5 * np.sin(2 * np.pi * 300 * np.arange(16_000) / 16_000)
        assert np.abs(out - true)[500:-500].max() < 2e-3


def test_odd_values_are_mended_and_counted() -> None:
    r = Resampler(16_000)
    out = r.push(np.array([0.5, np.nan, np.inf, -np.inf, 3.0, -3.0], np.float32))
    assert out.tolist() == [0.5, 0.0, 0.0, 0.0, 1.0, -1.0]
    assert (r.report.not_finite, r.report.clipped) == (3, 2)
    text = " ".join(r.report.warnings())
    assert "3 samples were not finite" in text
    assert "clipped" in text
