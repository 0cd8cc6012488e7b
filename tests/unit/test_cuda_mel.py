# SPDX-License-Identifier: Apache-2.0
"""The mel kernel, run on the host, against its CPU twin and the golden data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from golden import load
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipsync_fast import _emulated
from lipsync_fast._native import mel_rows_at

TOLERANCE = 1e-4
"""Tolerance in the output's range, -4 to 4."""

Pcm = NDArray[np.int16] | NDArray[np.float32]


@pytest.fixture(autouse=True)
def _forward() -> Iterator[None]:
    yield
    _emulated.set_thread_order("forward")


def kernel(pcm: Pcm, windows: list[tuple[int, int, int, int]]) -> NDArray[np.float32]:
    """N x 16 rows x 80 of windows (offset, low, high, previous)."""
    out = np.full((len(windows), 1, 80, 16), np.nan, np.float32)
    _emulated.mel(pcm, np.array(windows, np.int32).reshape(-1, 4), out)
    return out[:, 0].transpose(0, 2, 1)


def of_row(pcm: Pcm, first: int) -> tuple[int, int, int, int]:
    """The window whose first row is row ``first`` of a whole sound."""
    return 200 * first - 400, 0, len(pcm), 0


def twin(pcm: Pcm, first: int) -> NDArray[np.float32]:
    return mel_rows_at(floats(pcm), 0, first, 16)


def floats(pcm: Pcm) -> NDArray[np.float32]:
    if pcm.dtype == np.int16:
        return pcm.astype(np.float32) / np.float32(32768)
    return pcm.astype(np.float32)


def sound(kind: str, level: float, hz: float, seed: int, length: int) -> NDArray[np.float32]:
    random, t = np.random.RandomState(seed), np.arange(length)
    wave = np.sin(2 * np.pi * hz / 16_000 * t + seed)
    made = {
        "tone": wave,
        "square": np.where(wave >= 0, 1.0, -1.0),
        "noise": random.uniform(-1, 1, length),
        "tone and noise": 0.999 * wave + 1e-4 * random.uniform(-1, 1, length),
        "dc and noise": 0.999 + 1e-4 * random.uniform(-1, 1, length),
        "clicks": (random.rand(length) < 0.001) * random.choice([-1.0, 1.0], length),
    }[kind]
    return np.asarray(level * made, np.float32)


KINDS = ["tone", "square", "noise", "tone and noise", "dc and noise", "clicks"]
sounds = st.builds(
    sound,
    kind=st.sampled_from(KINDS),
    level=st.one_of(st.just(1.0), st.floats(-7, 0).map(lambda power: 10.0**power)),
    hz=st.floats(1, 8_000),
    seed=st.integers(0, 1_000),
    length=st.integers(0, 6_000),
)


@settings(max_examples=200, deadline=None)
@given(pcm=sounds, place=st.floats(0, 1), whole_numbers=st.booleans())
def test_any_sound_at_any_level_agrees_with_the_twin(
    pcm: NDArray[np.float32], place: float, whole_numbers: bool
) -> None:
    x: Pcm = np.round(pcm * 32767).astype(np.int16) if whole_numbers else pcm
    first = int(place * (len(x) // 200))
    got = kernel(x, [of_row(x, first)])[0]
    assert np.abs(got - twin(x, first)).max() <= TOLERANCE


@pytest.mark.parametrize("period", [2, 3, 4, 16, 25, 32, 50, 77, 100, 160])
def test_the_loudest_square_waves(period: int) -> None:
    t = np.arange(6_000)
    pcm = np.where(t % period < period // 2, 32767, -32768).astype(np.int16)
    assert np.abs(kernel(pcm, [of_row(pcm, 3)])[0] - twin(pcm, 3)).max() <= TOLERANCE


@pytest.mark.parametrize("level", [1.0, 1e-2, 1e-3, 1e-4])
def test_speech_at_any_level(level: float) -> None:
    pcm = (load("audio")["pcm16k"].astype(np.float32) / 32768 * level).astype(np.float32)
    firsts = range(0, len(pcm) // 200 - 16, 13)
    got = kernel(pcm, [of_row(pcm, first) for first in firsts])
    for rows, first in zip(got, firsts, strict=True):
        assert np.abs(rows - twin(pcm, first)).max() <= TOLERANCE


def test_golden() -> None:
    golden = load("audio")
    pcm, rows = golden["pcm16k"].astype(np.int16), golden["mel"]
    for start in golden["windows_start"]:
        first = min(int(start), len(rows) - 16)  # a window past the end is moved back
        got = kernel(pcm, [of_row(pcm, first)])[0]
        assert np.abs(got - rows[first : first + 16]).max() <= TOLERANCE


def test_silence_is_the_bottom_of_the_scale() -> None:
    assert (kernel(np.zeros(4_000, np.int16), [(0, 0, 4_000, 0)]) == -4.0).all()
    assert (kernel(np.zeros(0, np.float32), [(0, 0, 0, 0)]) == -4.0).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1_000), count=st.integers(1, 4), first=st.integers(0, 20))
def test_whole_numbers_equal_floats_and_a_batch_equals_its_windows(
    seed: int, count: int, first: int
) -> None:
    pcm = np.random.RandomState(seed).randint(-32768, 32768, 8_000).astype(np.int16)
    windows = [of_row(pcm, first + k) for k in range(count)]
    whole = kernel(pcm, windows)
    assert np.array_equal(whole, kernel(floats(pcm), windows))
    for one, window in zip(whole, windows, strict=True):
        assert np.array_equal(kernel(pcm, [window])[0], one)
    for earlier, later in pairwise(whole):
        assert np.array_equal(earlier[1:], later[:-1])  # a row is the same in every window


@settings(max_examples=40, deadline=None)
@given(
    pcm=sounds,
    before=st.integers(0, 500),
    cut=st.integers(0, 4_500),
    place=st.integers(0, 25),
    gap=st.integers(0, 300),
)
def test_a_sound_between_others_is_read_as_if_alone(
    pcm: NDArray[np.float32], before: int, cut: int, place: int, gap: int
) -> None:
    """``low``, ``high`` and ``previous`` cut a sound out of what lies around it."""
    noise = np.random.RandomState(7).uniform(-1, 1, before + gap).astype(np.float32)
    first = min(place, len(pcm) // 200)
    around = np.concatenate([noise[:before], pcm, noise[before:]])
    offset = before + 200 * first - 400
    alone = kernel(pcm, [of_row(pcm, first)])
    window = (offset, before, before + len(pcm), 0)
    assert np.array_equal(kernel(around, [window]), alone)
    # What was dropped before the first sample that is read but one does not matter.
    lowest = max(0, 200 * first - 400)
    drop = max(0, lowest - 1)
    if 0 < lowest <= len(pcm):
        rest = pcm[drop:]
        kept = (200 * first - 400 - drop, lowest - drop, len(rest), 1)
        assert np.array_equal(kernel(rest, [kept]), alone)


@pytest.mark.parametrize("order", ["backward", "shuffled"])
def test_the_order_of_the_threads_does_not_matter(order: str) -> None:
    pcm = np.random.RandomState(3).uniform(-1, 1, 6_000).astype(np.float32)
    windows = [of_row(pcm, first) for first in (0, 5, 14)]
    expected = kernel(pcm, windows)
    _emulated.set_thread_order(order)  # type: ignore[arg-type]
    assert np.array_equal(kernel(pcm, windows), expected)


def test_half_precision_is_the_rounded_result() -> None:
    pcm = np.random.RandomState(4).uniform(-0.1, 0.1, 6_000).astype(np.float32)
    windows = np.array([of_row(pcm, 4), (0, 0, 900, 0)], np.int32)
    full = np.empty((2, 1, 80, 16), np.float32)
    _emulated.mel(pcm, windows, full)
    half = np.empty(full.shape, np.float16)
    _emulated.mel(pcm, windows, half)
    assert np.array_equal(half, full.astype(np.float16))
    torch = pytest.importorskip("torch")
    for dtype in (torch.float16, torch.bfloat16):
        out = torch.empty(full.shape, dtype=dtype)
        _emulated.mel(torch.from_numpy(pcm), torch.from_numpy(windows), out)
        assert torch.equal(out, torch.from_numpy(full).to(dtype))


def test_what_is_no_number_gives_silence_where_it_is_heard() -> None:
    pcm = np.random.RandomState(5).uniform(-1, 1, 6_000).astype(np.float32)
    pcm[2_000] = np.nan
    rows = kernel(pcm, [(0, 0, 6_000, 0)])[0]
    heard = [200 * r <= 2_001 and 200 * r + 800 > 2_000 for r in range(16)]
    assert [bool((row == -4.0).all()) for row in rows] == heard
    pcm[2_000] = np.inf
    assert np.isfinite(kernel(pcm, [(0, 0, 6_000, 0)])).all()


def test_windows_that_lie_anywhere_read_nothing_outside() -> None:
    pcm, far = np.ones(500, np.float32), 2**31 - 1
    for window in ((far, 0, far, 1), (-far, -far, far, 1), (0, -far, far, 1), (0, 400, 300, 1)):
        got = kernel(pcm, [window])
        assert ((got >= -4) & (got <= 4)).all()


def test_misuse_is_refused() -> None:
    pcm, windows = np.zeros(800, np.int16), np.zeros((1, 4), np.int32)
    out = np.zeros((1, 1, 80, 16), np.float32)
    frozen = out.copy()
    frozen.flags.writeable = False
    wrong: list[tuple[object, object, object, str]] = [
        (pcm.astype(np.float64), windows, out, "pcm is float64 .*: expected int16 or float32"),
        (pcm.reshape(2, 400), windows, out, "pcm is int16 .2, 400.: expected one dimension"),
        (pcm[::2], windows, out, "pcm is not contiguous"),
        (pcm, windows.astype(np.int64), out, "windows is int64 .*: expected int32"),
        (pcm, windows[:, :3], out, "windows is int32 .1, 3.: expected windows x 4"),
        (pcm, windows, out[:, 0], "out is float32 .1, 80, 16.: expected windows x 1 x 80 x 16"),
        (pcm, windows, out.astype(np.int32), "out is int32 .*: expected float32, float16 or"),
        (pcm, windows, np.zeros((1, 1, 16, 80), np.float32).swapaxes(2, 3), "not contiguous"),
        (pcm, windows, frozen, "out is read-only"),
        ([0] * 800, windows, out, "pcm is no array"),
    ]
    for samples, which, to, why in wrong:
        with pytest.raises(ValueError, match=why):
            _emulated.mel(samples, which, to)
    _emulated.mel(pcm, windows[:0], out[:0])
