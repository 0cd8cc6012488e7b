# SPDX-License-Identifier: Apache-2.0
"""Microphones whose clocks are fast, in simulated time; and sound that must not be touched."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from numpy.typing import NDArray
from test_live import MS, World, check_clock

from lipsync_fast.frontend.playout.drift import Drift
from lipsync_fast.frontend.playout.playout import Ended
from lipsync_fast.timing import SLOT_NS

PIECE = 320
SECOND = 1_000 * MS


def speech(samples: int, seed: int = 1, pauses: bool = True) -> NDArray[np.float32]:
    """Noise as loud as speech, half a second of every two of it a pause."""
    sound = np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)
    if pauses:
        sound[(np.arange(samples) // 8_000) % 4 == 3] *= 0.01
    return sound


def microphone(
    world: World, seconds: float, percent: float, *, jitter_ms: float = 0.0, pauses: bool = True
) -> NDArray[np.float32]:
    """A microphone whose clock is so much fast, over a network of such delays; what it sent."""
    rng = random.Random(7)
    pieces = int(seconds * 50 * (1 + percent / 100))
    sound = speech(pieces * PIECE, pauses=pauses)
    begun, arrived = world.now, world.now
    for k in range(pieces):
        recorded = begun + int((k + 1) * 20 * MS / (1 + percent / 100))
        arrived = max(arrived, recorded + int(rng.uniform(0, jitter_ms) * MS))
        if arrived > world.now:
            world.run(max(1, round((arrived - world.now) / MS)))
        world.session.push_audio(sound[k * PIECE : (k + 1) * PIECE], world.now)
    world.sent_ns = world.now  # type: ignore[attr-defined]
    return sound


def delays(world: World, percent: float, begun: int) -> list[tuple[int, float]]:
    """From the moment that a frame was recorded to its picture: the frame, and ms."""
    return [
        (s.frame, (t - begun) / MS - s.frame * 40 / (1 + percent / 100))
        for t, _, s in world.spoken()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("pauses", [True, False])
@pytest.mark.parametrize("percent", [0.1, 0.5, 0.8])
def test_a_fast_clock_costs_no_more_than_100_ms(percent: float, pauses: bool) -> None:
    world, seconds = World(), 80
    begun = world.now
    microphone(world, seconds, percent, jitter_ms=3.0, pauses=pauses)
    found = delays(world, percent, begun)
    first = np.median([ms for frame, ms in found if frame < 50])
    assert max(ms for _, ms in found) - first <= 100 + 20  # a piece is 20 ms
    gained = seconds * percent / 100 * 25
    left_out = world.session.left_out
    assert gained - 3 <= left_out <= gained + 1
    frames = [s.frame for _, _, s in world.spoken()]
    assert len(set(frames)) == len(frames) == frames[-1] + 1 - left_out
    assert world.session.late == 0
    check_clock(world)


def test_what_is_left_out_is_silence_where_there_is_some() -> None:
    world = World()
    sound = microphone(world, 60, 0.5, jitter_ms=3.0)
    shown = {s.frame for _, _, s in world.spoken()}
    left_out = [k for k in range(max(shown)) if k not in shown]
    assert len(left_out) >= 5
    for frame in left_out:
        assert np.abs(sound[frame * 640 : (frame + 1) * 640]).max() < 0.02
    gaps = {p.frame: p.skipped for _, p in world.pictures() if p.frame is not None and p.skipped}
    assert gaps == {k + 1: 1 for k in left_out}


def test_the_end_tells_what_was_left_out() -> None:
    world = World()
    microphone(world, 40, 0.5)
    world.session.end_utterance(world.now)
    world.run(2_000)
    [ended] = [e for _, e in world.log if isinstance(e, Ended)]
    shown = [p for _, p in world.pictures() if p.utterance]
    assert ended.left_out == world.session.left_out == ended.frames - len(shown) > 0
    assert ended.dropped == 0


@pytest.mark.slow
@pytest.mark.parametrize("percent", [0.0, -0.5])
@pytest.mark.parametrize("jitter_ms", [0.0, 30.0, 200.0])
def test_sound_that_is_on_time_is_not_touched(percent: float, jitter_ms: float) -> None:
    world = World()
    microphone(world, 80, percent, jitter_ms=jitter_ms)
    assert world.session.left_out == 0
    frames = [s.frame for _, _, s in world.spoken()]
    assert sorted(set(frames)) == list(range(len(frames)))


@pytest.mark.parametrize("speed", [1.02, 1.05, 1.5, 4.0, 1000.0])
@pytest.mark.parametrize("piece_ms", [20, 100, 1000])
def test_sound_that_is_sent_ahead_is_not_touched(speed: float, piece_ms: int) -> None:
    """Speech from a synthesizer, at any speed beyond that of clocks, in any pieces."""
    drift, now, samples, touched = Drift(), 0, 0, 0
    for _ in range(100_000 // piece_ms):
        now += int(piece_ms * MS / speed)
        samples += 16 * piece_ms
        drift.heard(samples, now)
        touched += drift.leaves_out(0.0)
    assert touched == 0


@pytest.mark.parametrize("piece_ms", [300, 1000, 4000])
def test_large_pieces_are_no_microphone(piece_ms: int) -> None:
    """They come when they are made, now a little earlier, now a little later."""
    rng = random.Random(5)
    drift, samples, touched = Drift(), 0, 0
    for k in range(400):
        samples += 16 * piece_ms
        drift.heard(samples, int((k * piece_ms + rng.uniform(-100, 0)) * MS * 0.995))
        touched += drift.leaves_out(0.0)
    assert touched == 0


def test_sentences_sent_at_once_with_pauses_between() -> None:
    rng = random.Random(2)
    drift, now, samples, touched = Drift(), 0, 0, 0
    for _ in range(60):
        said_ms = rng.randrange(400, 6_000, 20)
        for _ in range(said_ms // 20):
            samples += 320
            drift.heard(samples, now)
            now += 100_000
            touched += drift.leaves_out(0.0)
        now += int(said_ms * MS * rng.uniform(0.97, 1.0))
    assert touched == 0


def test_a_stall_of_the_network_is_no_drift() -> None:
    drift, touched = Drift(), 0
    stalls = [(30.0, 1.0), (61.0, 3.0), (90.0, 0.3)]
    for k in range(50 * 120):
        at = k * 0.02
        for begin, length in stalls:
            if begin <= at < begin + length:
                at = begin + length
        drift.heard(320 * (k + 1), int(at * SECOND))
        touched += drift.leaves_out(0.0)
    assert touched == 0


def test_an_utterance_that_begins_again_owes_nothing() -> None:
    drift = Drift()
    for k in range(50 * 30):
        drift.heard(320 * (k + 1), int(k * 0.02 * SECOND / 1.005))
    assert drift.extra_ns > 2 * SLOT_NS
    drift.begin()
    assert drift.extra_ns == 0
    assert not drift.leaves_out(0.0)


def test_frames_that_are_shown_see_the_sound_that_they_always_see() -> None:
    """Those around what was left out too: their windows reach over it."""
    world, bytes_of = World(), {}
    submit = world.engine

    def engine() -> None:
        for job, pcm in world.session.jobs:
            if job.speech is not None and job.speech.frame >= 0 and job.speech.share == 1:
                bytes_of[job.speech.frame] = job.speech.first, pcm.copy()
        submit()

    world.engine = engine  # type: ignore[method-assign]
    sound = microphone(world, 60, 0.5)
    assert world.session.left_out > 3
    assert len(bytes_of) > 1000
    for first, pcm in bytes_of.values():
        assert np.array_equal(pcm, sound[first : first + len(pcm)])


def test_numbers_of_pictures_are_those_of_slots() -> None:
    world = World()
    microphone(world, 60, 0.5)
    numbers = [p.number for _, p in world.pictures()]
    assert all(b == a + 1 for a, b in itertools.pairwise(numbers))
