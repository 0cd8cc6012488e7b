# SPDX-License-Identifier: Apache-2.0
"""What a frame costs the device at least: the counts agree with the graphs and the frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lipsync_fast import _emulated
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.cuda import floors

COUNTED = Path(__file__).parents[2] / "bench" / "results" / "micro" / "floor.json"


def test_multiply_adds_are_those_that_onnx_counts() -> None:
    pytest.importorskip("torch")
    counted = json.loads(COUNTED.read_text())["millions"]["demo"]
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        found = floors.networks(package)
    assert {name: round(n / 1e6, 1) for name, n in found.items()} == {
        name: counted[name] for name in ("audio_encoder", "image", "decoder")
    }


def test_the_kernels_of_a_frame() -> None:
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        mask = package.mask(0)
        assert mask is not None
        found = floors.kernels(package, 0, 9000, _emulated.mel_products())
        assert list(found) == ["mel", "compose", "jpeg", "gather"]
        # Frame 0: a crop of 264 pixels, put into a part of 266 x 264 at its own size.
        assert found["compose"].written == 3 * 266 * 264
        kept = int(mask.sum())
        planes, crop = 3 * 4 * 250 * 197, 3 * (264 * 264 - 250 * 197)
        outside = 3 * (266 * 264 - 264 * 264 + kept)
        assert found["compose"].read == planes + crop + outside + 264 * 264
        # It changes in 16 x 14 units.
        assert (found["jpeg"].read, found["jpeg"].written) == (3 * 256 * 224, 9000)
        assert found["jpeg"].operations == 16 * 14 * (256 * 9 + 96 * 44 + 384 * 2)
        assert found["gather"].moved == 18_000
        assert found["mel"].read == 7600


def test_a_picture_that_is_no_multiple_of_a_unit_is_coded_in_whole_ones() -> None:
    assert floors.jpeg((17, 33), 1).operations == floors.jpeg((32, 48), 1).operations
    assert floors.jpeg((17, 33), 1).read == 3 * 17 * 33


def test_network_input_of_the_references_size() -> None:
    assert floors.region_input(320) == floors.Work(307_200, 1_228_800, 307_200)
