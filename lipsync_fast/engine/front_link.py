# SPDX-License-Identifier: Apache-2.0
"""An engine's links to fronts: the ring that a front's jobs come from and the one for answers."""

from __future__ import annotations

from collections.abc import Callable

from lipsync_fast.errors import RingError
from lipsync_fast.ipc.ring import RingHandle, RingReader, RingWriter
from lipsync_fast.logs import get_logger

MOST_WAITING = 512
"""Jobs of a front that are taken and not begun; more wait in its ring (some 40 kB each here)."""
log = get_logger("lipsync.engine")


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

    def next_job(self) -> memoryview | None:
        """The next record, to be released; None where there is none or enough of its jobs wait.

        Raises:
            RingError: what lies there is no record.
        """
        return None if self.waiting >= MOST_WAITING else self.jobs.next()

    def close(self) -> None:
        """Close the descriptors."""
        for handle in self._handles:
            handle.close()


class FrontLinks:
    """The fronts that an engine serves, by name.

    Args:
        gone: called with a link that is served no more, before it is closed.
    """

    def __init__(self, gone: Callable[[FrontLink], None]) -> None:
        self._gone = gone
        self._links: dict[str, FrontLink] = {}

    def attach(self, name: str, jobs: RingHandle, answers: RingHandle) -> None:
        """Serve a front; the handles are closed when it is detached, or at once on an error.

        One of the same name is replaced: it has died, nobody waits for its jobs.

        Raises:
            RingError: they are no rings.
        """
        self.detach(name)
        try:
            self._links[name] = FrontLink(name, jobs, answers)
        except RingError:
            jobs.close()
            answers.close()
            raise

    def detach(self, name: str) -> None:
        """Forget a front."""
        link = self._links.pop(name, None)
        if link is not None:
            self._gone(link)
            link.close()

    def give_up(self, link: FrontLink, error: RingError) -> None:
        """Forget a front whose rings are not what they should be."""
        log.error("rings are given up", front=link.name, reason=str(error))
        self.detach(link.name)

    def serves(self, link: FrontLink) -> bool:
        """Whether it is still attached."""
        return self._links.get(link.name) is link

    def all(self) -> list[FrontLink]:
        """Those that are attached now."""
        return list(self._links.values())

    @property
    def names(self) -> list[str]:
        """The names of those that are attached now."""
        return list(self._links)

    @property
    def doorbells(self) -> list[int]:
        """Descriptors that become readable when a job has come after ``ask_for_doorbells``."""
        return [link.jobs.doorbell for link in self._links.values()]

    def ask_for_doorbells(self) -> bool:
        """Ask to be woken by jobs. False when there is one by now: then do not sleep."""
        # Of a front with enough jobs here, no more are wanted; it is the backend that rings then.
        open_links = [link for link in self._links.values() if link.waiting < MOST_WAITING]
        return all(link.jobs.want_data() for link in open_links)

    def drain(self) -> None:
        """Read the doorbells empty."""
        for link in self._links.values():
            link.jobs.drain()

    def close(self) -> None:
        """Close all; jobs that have not ended get no answer."""
        for link in self._links.values():
            link.close()
        self._links.clear()
