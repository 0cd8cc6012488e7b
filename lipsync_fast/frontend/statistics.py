# SPDX-License-Identifier: Apache-2.0
"""What a front counts, and what it knows of the server as a whole."""

from __future__ import annotations

from lipsync_fast.frontend.engines.latencies import Latencies
from lipsync_fast.frontend.playout.playout import Playout
from lipsync_fast.histograms import Histogram
from lipsync_fast.ipc.status import FrontLoad, ServerStatus

FIRST_PICTURE = "0.05", "0.1", "0.15", "0.2", "0.3", "0.45", "0.6", "0.8", "1", "2", "5", "+Inf"
SESSION = "1", "5", "15", "60", "300", "900", "3600", "14400", "86400", "+Inf"
"""Ends of buckets, in seconds."""


class FrontStatistics:
    """The figures of one front process. One thread.

    Attributes:
        load: what this front does, for the supervisor; its parts add to it as things happen.
        latencies: of spoken frames, over the last minute.
        first_picture, session_time: see ``FrontLoad``.
        playouts: of all sessions, by their numbers: they know how much sound waits.
        server: all that the supervisor knows, a second old at most; None before it said so.
    """

    def __init__(self) -> None:
        self.load = FrontLoad()
        self.latencies = Latencies()
        self.first_picture, self.session_time = Histogram(FIRST_PICTURE), Histogram(SESSION)
        self.playouts: dict[int, Playout] = {}
        self.server: ServerStatus | None = None

    def count_refused(self, reason: str) -> None:
        """Something was refused; ``reason`` is a word to count it by."""
        self.load.refused[reason] = self.load.refused.get(reason, 0) + 1

    def count_text(self, result: str, characters: int) -> None:
        """A text is not spoken any more; ``result`` as in ``FrontLoad.texts``."""
        self.load.texts[result] = self.load.texts.get(result, 0) + 1
        self.load.text_characters += characters

    def count_error(self, code: str) -> None:
        """A client was told of an error, or a defect has shown."""
        self.load.errors[code] = self.load.errors.get(code, 0) + 1
