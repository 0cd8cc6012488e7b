# SPDX-License-Identifier: Apache-2.0
"""An engine's link to one front: the ring that its jobs come from and the one for answers."""

from __future__ import annotations

from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter


class FrontLink:
    """The two rings of a front; closed when it is gone."""

    def __init__(self, name: str, jobs: RingHandle, answers: RingHandle) -> None:
        """Take both sides.

        Raises:
            RingError: they are no rings, or of another generation.
        """
        self.name, self._handles = name, (jobs, answers)
        self.jobs, self.answers = RingReader(jobs), RingWriter(answers)
        self.waiting = 0
        """Its jobs that were taken and have not begun."""
        self.stuck = False
        """It did not read when it was last waited for."""

    def close(self) -> None:
        """Close the descriptors."""
        for handle in self._handles:
            handle.close()
