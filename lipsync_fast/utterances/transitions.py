# SPDX-License-Identifier: Apache-2.0
"""What a live session shows around an utterance: the mouth on its way in and out."""

from __future__ import annotations

LEAD, LEAD_OUT = 3, 5
"""Slots over which the mouth is drawn to the generated one, and back: on its way in every slot is
latency, on its way out none is."""
STEP_IN, STEP_OUT = 1 / (LEAD + 1), 1 / (LEAD_OUT + 1)
"""What a slot changes in the share of the generated mouth."""
NO_SHARE = 1e-6


def blended(frame: int) -> float:
    """The share of a frame of an utterance that begins at once: its first frames lead in."""
    return min(1.0, (frame + 1) * STEP_IN)


def shown(frames: int) -> list[tuple[int, int, float]]:
    """All that is shown of an utterance, however it begins, with nothing before and behind it.

    Returns:
        Slot from the first frame's on, the frame whose sound is shown, and the share: each frame as
        it is; the first ones as they lead in; the last one on its way out.
    """
    out = [(frame, frame, 1.0) for frame in range(frames)]
    out += [(frame, frame, blended(frame)) for frame in range(min(frames, LEAD))]
    for share in {1.0, blended(frames - 1)}:
        slot = frames
        while (share := share - STEP_OUT) > NO_SHARE:
            out.append((slot, frames - 1, share))
            slot += 1
    return out
