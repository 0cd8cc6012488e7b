# SPDX-License-Identifier: Apache-2.0
"""The shipped avatars are whole, and what they say of themselves is so."""

from __future__ import annotations

import wave
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

import lipsync_fast
from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.cli.demo import demo_recording

LARGEST_MB = 30
SIZES = {"demo": (1280, 720), "ben": (720, 1280)}
"""Of their pictures."""


@pytest.fixture(scope="module", params=sorted(SIZES))
def demo(request: pytest.FixtureRequest) -> Iterator[lipsync_fast.Avatar]:
    with lipsync_fast.open(request.param, backend="cpu") as avatar:
        yield avatar


def recording() -> NDArray[np.int16]:
    with wave.open(str(demo_recording()), "rb") as file:
        assert (file.getframerate(), file.getnchannels()) == (16_000, 1)
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def test_package(demo: lipsync_fast.Avatar) -> None:
    demo.package.verify()
    manifest = demo.manifest
    name = manifest.name
    assert demo.package.path == shipped_folder() / f"{name}.lsa"
    assert demo.package.path.stat().st_size < LARGEST_MB * 1e6
    assert (manifest.frame_width, manifest.frame_height) == SIZES[name]
    assert manifest.synthetic
    assert all((manifest.licence, manifest.provenance, manifest.consent))
    assert manifest.audio.lookahead_samples <= 16_000 // 4
    assert (2 * manifest.frame_count - 2) / manifest.fps > 7.9
    sides = {demo.package.rect(index).size for index in range(100)}
    assert sides == {(manifest.crop, manifest.crop)}, "its pixels would be resampled"


def test_speaks(demo: lipsync_fast.Avatar) -> None:
    """Where there is speech the mouth moves; in silence it rests; elsewhere nothing changes."""
    speech = recording()[: 16_000 * 3]
    frames = list(demo.render(speech, 16_000))
    silent = list(demo.render(np.zeros_like(speech), 16_000))
    assert len(frames) == len(silent) == 75
    changes = []
    for a, b in zip(frames, silent, strict=True):
        assert a.avatar_frame == b.avatar_frame
        face = demo.package.rect(a.avatar_frame).slices
        difference = np.abs(a.image.astype(np.int16) - b.image).max(axis=2)
        inside = difference[face]
        changes.append(int((inside > 25).sum()))
        keep = demo.package.mask(a.avatar_frame)
        assert keep is not None
        assert not inside[keep != 0].any()
        difference[face] = 0
        assert not difference.any()
    assert np.mean(np.array(changes) > 100) > 0.4
    assert max(changes[:3]) < 100, "before the first word"
