# SPDX-License-Identifier: Apache-2.0
"""Two clocks: a microphone whose clock is faster than the server's, and what is done about it.

    pieces of sound ─► how far they are ahead of the clock ─► grows slowly: that is drift
                                                                   │
    frames to be planned ─► one of a pause is left out ◄───────────┘

A sound card that is 0.5% fast sends 5 ms too much each second, all of which would wait: after a
minute everything came 300 ms later. So one frame of a pause is left out for every 40 ms. Its 40 ms
of sound are not heard in the echo either, and all frames that are shown are what they would be.

Only sound that trickles in small pieces in real time, and whose lead grows by no more than clocks
differ, is touched. What is sent ahead, at once or faster than it is spoken, is not.
"""

from __future__ import annotations

from lipsync_fast.timing import NS_PER_S, SAMPLE_RATE, SLOT_NS

WINDOW_NS = 2 * NS_PER_S
"""The most that sound was ahead is compared from one such time to the next: the network's delays
make it less, never more."""
MOST_DRIFT, JITTER_NS = 0.01, 5_000_000
"""Clocks differ by less than the one; what grows faster, by more than the other, was sent ahead."""
SMALL, FEWEST = SAMPLE_RATE // 5, 8
"""Samples of the largest piece of sound that trickles, and how many come in a window at least."""
SILENT, PAUSE, SOFT = 0.02, 1 / 16, 1 / 4
"""The loudest sample of a frame that may be left out: of silence, and parts of the loudest lately:
of a pause, and of soft sound where none has come for long."""
LONG_NS, LONGEST_NS = SLOT_NS * 3 // 2, 2 * SLOT_NS
"""Soft sound is left out from the one on, and any from the other on: more is noticed sooner."""
LOWEST = -(1 << 62)
FADE = 0.98
"""What was loudest counts so much less with each frame."""


class Drift:
    """Follows the sound of one utterance. No clock is read here.

    Attributes:
        extra_ns: how much later than at its beginning it is shown, since its clock is fast.
    """

    def __init__(self) -> None:
        self.extra_ns = 0
        self._begun_ns: int | None = None
        self._samples = 0
        self._loudest = 0.0
        self._forget()

    def begin(self) -> None:
        """The utterance begins (again) to be shown: what has come by now is waited for no more."""
        self.extra_ns = 0
        self._forget()

    def _forget(self) -> None:
        self._window_ns: int | None = None
        self._before: tuple[int, int] | None = None
        self._lead_ns = self._pieces = 0
        self._trickles = True

    def heard(self, samples: int, now_ns: int) -> None:
        """Sound has come.

        Args:
            samples: of the utterance, so far, at 16 kHz.
        """
        if self._begun_ns is None:
            self._begun_ns = now_ns
        if self._window_ns is None:
            self._window_ns, self._lead_ns, self._samples = now_ns, LOWEST, samples
        piece, self._samples = samples - self._samples, samples
        self._pieces += 1
        self._trickles = self._trickles and piece <= SMALL
        lead_ns = samples * NS_PER_S // SAMPLE_RATE - (now_ns - self._begun_ns)
        self._lead_ns = max(self._lead_ns, lead_ns)
        if now_ns - self._window_ns >= WINDOW_NS:
            self._close_window(now_ns)
            self._window_ns, self._lead_ns = now_ns, lead_ns

    def _close_window(self, now_ns: int) -> None:
        before, self._before = self._before, (now_ns, self._lead_ns)
        trickled = self._trickles and self._pieces >= FEWEST
        self._trickles, self._pieces = True, 0
        if not trickled:
            self.extra_ns, self._before = 0, None
        elif before is not None:
            passed, gained = now_ns - before[0], self._lead_ns - before[1]
            if gained <= MOST_DRIFT * passed + JITTER_NS:
                self.extra_ns = max(0, self.extra_ns + gained)

    def leaves_out(self, loudness: float) -> bool:
        """Whether the frame that is to be planned is left out, and with it a part of the drift.

        Args:
            loudness: of its loudest sample.
        """
        self._loudest = max(loudness, FADE * self._loudest)
        if self.extra_ns < SLOT_NS:
            return False
        part = SOFT if self.extra_ns >= LONG_NS else PAUSE
        if loudness > max(SILENT, part * self._loudest) and self.extra_ns < LONGEST_NS:
            return False
        self.extra_ns -= SLOT_NS
        return True
