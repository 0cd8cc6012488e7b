# SPDX-License-Identifier: Apache-2.0
"""Audio vectors on a device: slots, what a batch must compute, and the windows that it is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the CUDA backend needs torch")

import torch

from lipsync_fast._native import mel_rows_at
from lipsync_fast.arrays import F32
from lipsync_fast.audio.mel_numpy import mel
from lipsync_fast.audio.windows import MIN_SAMPLES, AudioWindow, block_starts, samples_seen
from lipsync_fast.engine.backends.base import Sound
from lipsync_fast.engine.backends.cuda.slots import Slots
from lipsync_fast.engine.backends.cuda.sounds import PAD, Heard, Sounds, check

WINDOW = AudioWindow()


def noise(samples: int, seed: int = 0) -> F32:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(max(samples, 1)) * 0.1).astype(np.float32)[:samples]


def sound(pcm: F32, frame: int, stream: object = 1, samples: int | None = None) -> Sound:
    """As the engine makes it of a job."""
    starts = block_starts(frame, WINDOW, samples)
    first, end = samples_seen(starts)
    return Sound(stream, tuple(starts), pcm[first:end], first)


def sounds(count: int = 400) -> Sounds:
    return Sounds(torch.device("cpu"), torch.float32, count)


# ---------------------------------------------------------------- slots
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_slot_is_never_taken_from_a_batch_in_flight(data: st.DataObject) -> None:
    """Batches use keys, end in order; whatever a batch was promised is there until it has ended."""
    slots = Slots(data.draw(st.integers(1, 6)), first=3)
    flying: list[tuple[int, dict[str, int]]] = []
    ended, number = 0, 0
    where: dict[int, str] = {}
    for _ in range(data.draw(st.integers(1, 30))):
        if flying and data.draw(st.booleans()):
            ended = flying.pop(0)[0]
            continue
        if data.draw(st.integers(0, 9)) == 0:
            gone = data.draw(st.sampled_from("abcdefgh"))
            slots.forget(lambda key, gone=gone: key == gone)
            continue
        number += 1
        promised: dict[str, int] = {}
        for key in data.draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5)):
            slot = slots.find(key, number)
            if slot is None:
                before = slots.room(ended)
                slot = slots.take(key, number, ended)
                assert (slot is not None) == (before > 0)
                if slot is None:
                    break
                assert 3 <= slot < 3 + slots.count
                where[slot] = key
            promised[key] = slot
        flying.append((number, promised))
        assert len(slots) <= slots.count
        for _, promises in flying:
            for key, slot in promises.items():
                assert where[slot] == key


def test_the_least_recently_used_goes_first() -> None:
    slots = Slots(3)
    taken = {key: slots.take(key, batch, 0) for batch, key in enumerate("abc", 1)}
    assert slots.find("a", 4) == taken["a"]
    assert slots.take("d", 5, ended=1) is None, "batch 2, the last one to use b, has not ended"
    assert slots.take("d", 5, ended=2) == taken["b"]
    assert "b" not in slots
    assert slots.take("e", 6, ended=3) == taken["c"]
    slots.grow(4)
    assert slots.take("f", 7, ended=3) == 3
    assert len(slots) == 4


# ---------------------------------------------------------------- what a batch computes
def test_frames_that_follow_each_other_miss_one_vector() -> None:
    kept, pcm = sounds(), noise(40_000)
    made = []
    for batch, frame in enumerate(range(20, 40), 1):
        heard = kept.plan([("avatar", sound(pcm, frame))], batch, batch - 1)
        made.append(len(heard.slots))
        assert len(set(heard.index[0])) == 16
    assert made == [16] + [1] * 19


def test_streams_and_avatars_do_not_share_and_padding_is_zeros() -> None:
    kept, pcm = sounds(), noise(40_000)
    frames = [
        ("a", sound(pcm, 0, 1)),
        ("a", sound(pcm, 0, 2)),
        ("b", sound(pcm, 0, 1)),
        ("a", None),
    ]
    heard = kept.plan(frames, 1, 0)
    unlike = [set(row) - {0} for row in heard.index]
    assert not unlike[0] & unlike[1]
    assert not unlike[0] & unlike[2]
    assert heard.index[0].count(0) == 8, "a sound's first frame sees eight vectors before it"
    assert heard.index[3] == [0] * 16
    again = kept.plan(frames, 2, 0)
    assert again.index == heard.index
    assert again.slots == []
    kept.forget("a")
    third = kept.plan(frames, 3, 2)
    assert len(third.slots) == len(unlike[0]) + len(unlike[1])


def test_one_batch_computes_a_shared_vector_once() -> None:
    kept, pcm = sounds(), noise(40_000)
    heard = kept.plan([("a", sound(pcm, frame)) for frame in range(20, 30)], 1, 0)
    assert len(heard.slots) == len(set(heard.slots)) == 16 + 9
    assert len(heard.samples) == 10


def test_without_room_a_batch_is_cut_short_and_nothing_is_left_of_the_rest() -> None:
    kept, pcm = sounds(1 + 40), noise(40_000)
    frames = [("a", sound(pcm, 30, stream)) for stream in range(5)]
    heard = kept.plan(frames, 1, 0)
    assert len(heard.index) == 2
    assert len(heard.slots) == len(heard.made) == len(heard.windows) == 32
    assert kept.plan(frames[2:], 2, 0).index == [], "what batch 1 uses is not given away"
    assert len(kept.plan(frames[2:], 3, ended=2).index) == 2


def test_what_was_not_computed_is_forgotten() -> None:
    kept, pcm = sounds(), noise(40_000)
    first = kept.plan([("a", sound(pcm, 30))], 1, 0)
    kept.undo(first)
    assert len(kept.plan([("a", sound(pcm, 30))], 2, 0).slots) == 16
    assert kept.used == 16 * 512 * 4


# ---------------------------------------------------------------- windows
def emphasised(heard: Heard) -> list[F32]:
    """The samples of each window as the kernel is to see them, from its table."""
    samples = np.concatenate([np.zeros(PAD, np.float32), *heard.samples]).astype(np.float64)
    assert len(samples) == heard.end
    windows = []
    for offset, low, high, previous in heard.windows:
        i = np.arange(offset, offset + 3_800)
        inside = (i >= low) & (i < high)
        assert low - previous >= PAD
        assert high <= len(samples)
        before = np.where(
            (i > low) | (previous == 1), samples[np.clip(i - 1, 0, len(samples) - 1)], 0
        )
        y = np.where(inside, samples[np.clip(i, 0, len(samples) - 1)] - 0.97 * before, 0)
        windows.append(y)
    return windows


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 30_000),
    st.integers(0, 50),
    st.booleans(),
    st.sets(st.integers(0, 60), max_size=3),
)
def test_windows_hold_what_the_frames_see(
    samples: int, frame: int, ended: bool, before: set[int]
) -> None:
    """Against the emphasised sound as a whole: at its beginning, in the middle, at its end."""
    whole = noise(samples)
    padded = np.concatenate([whole, np.zeros(max(0, MIN_SAMPLES - samples), np.float32)])
    known = samples if ended else None
    kept = sounds()
    for batch, other in enumerate(sorted(before), 1):  # so that some vectors are there already
        wanted = sound(padded, other, samples=known)
        if len(wanted.pcm):
            kept.plan([("a", wanted)], batch, 0)
    wanted = sound(padded, frame, samples=known)
    heard = kept.plan([("a", wanted)], 99, 0)
    y = np.concatenate([np.zeros(400), padded, np.zeros(60_000)]).astype(np.float64)
    y[401:] -= 0.97 * y[400:-1]
    y[400 + len(padded) :] = 0
    for (_, _, start), window in zip(heard.made, emphasised(heard), strict=True):
        assert np.array_equal(window, y[200 * start : 200 * start + 3_800])


def test_windows_give_the_rows_of_the_whole_sound() -> None:
    """The twin on the host, from the pieces that a batch would bring."""
    pcm = noise(30_000)
    rows = mel(pcm)
    kept = sounds()
    for batch, frame in enumerate((0, 3, 4, 20, 30)):
        wanted = sound(pcm, frame)
        made = kept.plan([("a", wanted)], batch + 1, batch).made
        for _, _, start in made:
            found = mel_rows_at(wanted.pcm, wanted.first, start, 16)
            assert np.abs(found - rows[start : start + 16]).max() <= 1e-4


# ---------------------------------------------------------------- what is refused
def test_sounds_that_do_not_hold_what_they_say() -> None:
    pcm = noise(40_000)
    good = sound(pcm, 30)
    check(good)
    check(Sound(1, (-1,) * 16, pcm[:0], 0))
    for starts, samples, first, reason in (
        (good.starts[:15], good.pcm, good.first, "15 vectors"),
        (good.starts, good.pcm, good.first + 1, "or before"),
        (good.starts, good.pcm, -1, "or before"),
        (good.starts, good.pcm[:1000], good.first, "sees none"),
        (good.starts, good.pcm.astype(np.float64), good.first, "float64"),
        (good.starts[::-1], good.pcm, good.first, "in order"),
    ):
        with pytest.raises(ValueError, match=reason):
            check(Sound(1, starts, samples, first))
