# SPDX-License-Identifier: Apache-2.0
"""The checks of ``lipsync-fast doctor``: small, quick, against data that came with the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lipsync_fast.errors import NotCheckedError, WrongResultError

MEL_TOLERANCE = 1e-4
PICTURE_TOLERANCE = 2
"""Grey levels, at the worst."""


def data_folder() -> Path:
    """Where the golden data lies."""
    return Path(__file__).parent / "data" / "selftest"


def check_mel() -> str:
    """The native mel against the reference's, for a short recording."""
    path = data_folder() / "mel.npz"
    if not path.is_file():
        raise NotCheckedError("this installation came without golden mel data")
    from lipsync_fast._native import MelStream

    with np.load(path, allow_pickle=False) as golden:
        pcm, expected = golden["pcm16k"], golden["mel"]
    stream = MelStream()
    rows = [stream.push((pcm / np.float32(32768)).astype(np.float32)), stream.finish()]
    got = np.concatenate(rows)
    if len(got) < len(expected):
        raise WrongResultError(f"{len(got)} mel rows instead of {len(expected)}")
    worst = float(np.abs(got[: len(expected)] - expected).max())
    if not worst <= MEL_TOLERANCE:
        raise WrongResultError(f"mel is off by {worst:.2e} (allowed {MEL_TOLERANCE:.0e})")
    return f"{len(expected)} rows within {worst:.1e} of the reference"


def check_picture() -> str:
    """Frames of the demo avatar: bytes of a whole render, against golden ones where shipped."""
    path = data_folder() / "frames.npz"
    if not path.is_file():
        raise NotCheckedError("this installation came without golden pictures of the demo avatar")
    import lipsync_fast
    from lipsync_fast.errors import AvatarNotFoundError

    with np.load(path, allow_pickle=False) as golden:
        pcm, indices, expected = golden["pcm16k"], golden["index"], golden["mouth"]
        top, left = (int(v) for v in golden["corner"])
    height, width = expected.shape[1:3]
    try:
        avatar = lipsync_fast.open("demo", backend="cpu")
    except AvatarNotFoundError:
        raise NotCheckedError("the demo avatar is not installed") from None
    wanted = {int(index): row for row, index in enumerate(indices)}
    worst = seen = 0
    with avatar:
        for frame in avatar.render(pcm, 16_000):
            if frame.index in wanted:
                part = frame.image[top : top + height, left : left + width].astype(np.int16)
                worst = max(worst, int(np.abs(part - expected[wanted[frame.index]]).max()))
                seen += 1
    if seen != len(wanted):
        raise WrongResultError(f"{seen} of {len(wanted)} golden frames came out")
    if worst > PICTURE_TOLERANCE:
        raise WrongResultError(f"pictures are off by {worst} grey levels")
    return f"{seen} frames within {worst} grey levels of those made with the package"


def check_render() -> str:
    """A frame of the demo avatar comes out at all, with a mouth that follows the sound."""
    import lipsync_fast
    from lipsync_fast.errors import AvatarNotFoundError

    try:
        avatar = lipsync_fast.open("demo", backend="cpu")
    except AvatarNotFoundError:
        raise NotCheckedError("the demo avatar is not installed") from None
    with avatar:
        noise = np.random.default_rng(0).normal(0.0, 0.1, 3200).astype(np.float32)
        loud = [frame.image for frame in avatar.render(noise, 16_000)]
        still = [frame.image for frame in avatar.render(np.zeros(3200, np.float32), 16_000)]
    if len(loud) != 5 or len(still) != 5:
        raise WrongResultError(f"{len(loud)} frames for 0.2 s of sound instead of 5")
    if all(np.array_equal(a, b) for a, b in zip(loud, still, strict=True)):
        raise WrongResultError("the picture does not depend on the sound")
    return "5 frames for 0.2 s of sound; the picture follows the sound"


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("mel front end", check_mel),
    ("demo avatar renders", check_render),
    ("demo avatar's pictures", check_picture),
)
