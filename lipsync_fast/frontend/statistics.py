# SPDX-License-Identifier: Apache-2.0
"""What a front counts, and what it knows of the server as a whole."""

from __future__ import annotations

from lipsync_fast.frontend.engines.latencies import Latencies
from lipsync_fast.frontend.playout.playout import Playout
from lipsync_fast.ipc.status import FrontLoad, ServerStatus


class FrontStatistics:
    """The figures of one front process. One thread.

    Attributes:
        load: what this front does, for the supervisor; its parts add to it as things happen.
        latencies: of spoken frames, over the last minute.
        playouts: of all sessions, by their numbers: they know how much sound waits.
        server: all that the supervisor knows, a second old at most; None before it said so.
    """

    def __init__(self) -> None:
        self.load = FrontLoad()
        self.latencies = Latencies()
        self.playouts: dict[int, Playout] = {}
        self.server: ServerStatus | None = None

    def count_refused(self, reason: str) -> None:
        """Something was refused; ``reason`` is a word to count it by."""
        self.load.refused[reason] = self.load.refused.get(reason, 0) + 1

    def count_error(self, code: str) -> None:
        """A client was told of an error, or a defect has shown."""
        self.load.errors[code] = self.load.errors.get(code, 0) + 1
