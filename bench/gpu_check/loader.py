# SPDX-License-Identifier: Apache-2.0
"""Bringing an avatar's frames onto the device: how fast, and in what bytes."""

from __future__ import annotations

import time

import numpy as np

from gpu_check.context import Context
from gpu_check.target import Target, grey
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.cuda.loader import Decoding, load_frames, without_dali


def main(context: Context) -> None:
    """By Pillow; by DALI on the host and on the device, where it is."""
    target, reason = Target(context.dry), without_dali()
    ways: list[Decoding] = ["pillow"]
    if reason is None:
        ways += ["exact"] if context.dry else ["exact", "device"]
    else:
        context.found.fact("DALI", reason)
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        count = 10 if context.dry else package.manifest.frame_count
        for way in ways:
            with context.found.attempt(f"decoding: {way}"):
                begun = time.perf_counter()
                batches = load_frames(package, target.where, range(count), decoding=way)
                faces = [face for batch in batches for face in batch]
                target.wait()
                seconds = time.perf_counter() - begun
                made = faces[-1].pixels.cpu().numpy()
                found = grey(made, package.picture(count - 1))
                row = {"frames_per_s": round(count / seconds, 1), **found}
                context.found.value("decoding", way, value=row)
                same = np.array_equal(made, package.picture(count - 1))
                context.found.check(f"{way}: pixels", same or way == "device", str(found))
