# SPDX-License-Identifier: Apache-2.0
"""What tools/fuzz.py has found, and its good inputs, through all readers of strangers' bytes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
CORPUS = CHECKOUT / "tests" / "data" / "fuzz"
sys.path.insert(0, str(CHECKOUT / "tools" / "fuzzing"))

import targets  # noqa: E402


@pytest.mark.parametrize("name", targets.TARGETS)
def test_all_that_was_found_is_read_or_refused(name: str) -> None:
    target = targets.TARGETS[name]
    for data in targets.seeds(name):
        target(data)
        for cut in (0, 1, len(data) // 2, len(data) - 1):
            target(data[:cut])
    for path in sorted((CORPUS / name).glob("*")):
        target(path.read_bytes())


def test_the_good_inputs_are_good() -> None:
    """Else a fuzzer begins with what is refused at once."""
    with (
        targets.as_file(targets.small_package()) as path,
        targets.AvatarPackage.open(path) as package,
    ):
        assert package.crop(1).shape == (232, 232, 3)
        assert package.mask(0) is not None
    targets.check_network(targets.small_network(), "x.onnx")
