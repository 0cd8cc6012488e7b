# SPDX-License-Identifier: Apache-2.0
"""How long frames that have a place in time take lately, and how much time they are given for it.

It grows at once where frames take longer, the slow ones among them, and comes down over some two
hundred frames: a frame that is late is worse than one that is shown later than it could be.
"""

from __future__ import annotations

SPARE_NS = 12_000_000
"""Between a frame's answer and its bytes in the socket, with some to spare."""
UP, DOWN, LEAST_DOWN = 4, 200, 100
"""Parts of what is too little, of what is too much, and at least of what a frame takes."""


class LatencyEstimate:
    """From a job's way into a ring to its answer, for jobs that have no time to lose."""

    def __init__(self) -> None:
        self.ns = 0.0

    def took(self, ns: int, skipped: bool = False) -> None:
        """Such a job was answered.

        Args:
            ns: it took.
            skipped: it was given up by then; it would have taken longer, nobody knows how much.
        """
        if skipped:
            ns *= 2
        more = ns - self.ns
        self.ns += more / UP if more > 0 else max(more / UP, min(more / DOWN, -ns / LEAST_DOWN))

    def margin_ns(self, least_ms: float, most_ms: float) -> int:
        """From the moment that a frame's sound is there to its slot."""
        return int(min(max(self.ns + SPARE_NS, least_ms * 1e6), most_ms * 1e6))


def urgent_before(now_ns: int, margin_ns: int, session_margin_ns: int, slack_ns: int) -> int:
    """Jobs whose deadline is earlier are urgent: how long they take is what frames take.

    Jobs that come together, as at an utterance's end, have more time the later they are: how long
    those take says nothing about how long one takes that has none to lose. But an utterance that
    began when all took longer keeps its margin, and its frames, one by one, have none to lose
    either: they show that engines are fast again.

    Args:
        now_ns: when they are asked for.
        margin_ns, session_margin_ns: of an utterance that begins now, and of the session's own.
        slack_ns: a frame's deadline is so much later than its slot, or less.
    """
    return now_ns + max(margin_ns, session_margin_ns) + slack_ns
