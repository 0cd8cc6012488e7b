# SPDX-License-Identifier: Apache-2.0
"""A frame's way from its last needed sample to its bytes at the client, hop by hop.

What the fronts have traced (``frontend.engines.trace``) is joined with what the clients of the same
machine noted: both read CLOCK_MONOTONIC.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

from lipsync_fast.audio.windows import AudioWindow, frame_count, frame_sees
from lipsync_fast.benchmark.load import Notes
from lipsync_fast.benchmark.speech import frame_due_ns
from lipsync_fast.frontend.engines.trace import Hops

NAMES = (
    "sound to the front",
    "job into the ring",
    "wait for the engine",
    "engine",
    "answer to the front",
    "wait for its turn",
    "into the socket",
    "to the client",
)


@dataclass(frozen=True)
class Profile:
    """Mean milliseconds of each hop over ``traced`` frames; of the whole way over all frames."""

    hops_ms: dict[str, float]
    traced: int
    mean_ms: float


def profile(
    trace: Path, notes: Sequence[Notes], window: AudioWindow, samples: int
) -> Profile | None:
    """Where frames spent their time; None where no frame was traced.

    Only of frames that see no further than the sound: those behind are made as soon as it ends.

    Args:
        trace: file of the fronts; lines that are none are passed over.
        notes: of the sessions.
        window: the avatar's.
        samples: of an utterance, at 16 kHz.
    """
    inside = sum(frame_sees(k, window)[1] <= samples for k in range(frame_count(samples)))
    due = [frame_due_ns(k, window) for k in range(inside)]
    sessions = {n.session.removeprefix("s"): n for n in notes}
    sums, count = [0] * len(NAMES), 0
    for line in trace.read_bytes().splitlines():
        try:
            found = msgspec.json.decode(line, type=Hops)
        except (msgspec.MsgspecError, UnicodeError):
            continue  # it is being written
        moments = _moments(found, sessions.get(str(found.session)), due)
        if moments is not None:
            count += 1
            for k, (before, after) in enumerate(pairwise(moments)):
                sums[k] += after - before
    if not count:
        return None
    means = (total / count / 1e6 for total in sums)
    whole = (
        here - spoken.begun_ns - due[frame]
        for each in notes
        for spoken in each.utterances
        for frame, here in spoken.arrivals.items()
        if frame < inside
    )
    return Profile(
        {name: round(ms, 3) for name, ms in zip(NAMES, means, strict=True)},
        count,
        round(statistics.fmean(whole) / 1e6, 3),
    )


def _moments(found: Hops, notes: Notes | None, due: list[int]) -> tuple[int, ...] | None:
    """A frame's moments; None where the client has not seen it, or it sees beyond the sound."""
    spoken = None if notes is None else notes.utterance(found.utterance)
    if spoken is None:
        return None
    here = spoken.arrivals.get(found.frame)
    if here is None or not 0 <= found.frame < len(due):
        return None
    h, heard = found, spoken.begun_ns + due[found.frame]
    return heard, h.asked, h.in_ring, h.taken, h.made, h.read, h.shown, h.sent, here
