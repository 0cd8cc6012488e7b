# SPDX-License-Identifier: Apache-2.0
"""How a session does: for its client, and added to the front's figures."""

from __future__ import annotations

import time

from lipsync_fast.frontend.playout.playout import Flag, Picture, Playout
from lipsync_fast.frontend.session.spoken import SpokenUtterances
from lipsync_fast.frontend.statistics import FrontStatistics
from lipsync_fast.timing import FPS
from lipsync_fast_client.protocol import Stats


class SessionStatistics:
    """The figures of one session.

    Args:
        front: figures of all sessions of the front.
        paced: frames have moments, so how late they come counts for the front's latencies.
        spoken: the session's utterances.
    """

    def __init__(self, front: FrontStatistics, paced: bool, spoken: SpokenUtterances) -> None:
        self._front, self._load, self._paced = front, front.load, paced
        self._spoken = spoken
        self.frames = 0
        """Pictures that the transport has taken."""
        self._skipped = self._not_made = 0
        self._latency_ms: float | None = None

    def on_shown(self, picture: Picture) -> None:
        """A picture's turn has come; it is on its way to the client."""
        self._load.late += picture.frame is not None and bool(picture.flags & Flag.REPEATED)
        self._spoken.on_shown(picture)

    def on_sent(self, picture: Picture, size: int) -> None:
        """The transport has taken a picture of so many bytes."""
        self.frames += 1
        load = self._load
        load.frames += 1
        load.idle_frames += picture.frame is None
        load.bytes += size
        if picture.frame is not None and not picture.flags & Flag.REPEATED:
            self._latency_ms = (time.monotonic_ns() - picture.ready_ns) / 1e6
            if self._paced:
                self._front.latencies.add(self._latency_ms, self._spoken.trace_of(picture))
            self._spoken.on_sent(picture, self._latency_ms)

    def on_left_out(self, frames: int) -> None:
        """The client reads too slowly: pictures were left out."""
        self._skipped += frames
        self._load.skipped += frames
        self._spoken.on_left_out(frames)

    def follow(self, playout: Playout) -> None:
        """Add what the playout has left out on purpose to the front's figures."""
        self._load.left_out += playout.left_out - self._not_made
        self._not_made = playout.left_out

    def message(self, playout: Playout, stride: int = 1) -> Stats:
        """What the client is told.

        Args:
            stride: of what is spoken, one frame in so many is shown now.
        """
        return Stats(
            frames=self.frames,
            late=playout.late,
            skipped=self._skipped,
            queued_ms=round(playout.queued_s * 1000, 1),
            latency_ms=None if self._latency_ms is None else round(self._latency_ms, 1),
            fps=FPS / stride,
            left_out=playout.left_out,
        )
