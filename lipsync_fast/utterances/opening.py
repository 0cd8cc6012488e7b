# SPDX-License-Identifier: Apache-2.0
"""How the store of kept frames is opened: as configured; and again where it could not be had."""

from __future__ import annotations

import time

from lipsync_fast.config import Utterances
from lipsync_fast.errors import StoreError
from lipsync_fast.logs import get_logger
from lipsync_fast.utterances.store import Store, store_folder

log = get_logger("lipsync.utterances")
RETRY_S = 5.0
"""Before a store that could not be had is tried again."""


def open_store(config: Utterances, wait_s: float = 0.0) -> Store:
    """The configured store.

    Args:
        wait_s: for other writers; 0 for who must not wait.

    Raises:
        StoreError: it cannot be opened.
    """
    return Store(store_folder(config.folder), config.disk_mb * 1_000_000, wait_s)


class StoreReader:
    """The store for one who reads and never waits: opened when it is first asked for. One thread.

    What cannot be opened is tried again after ``RETRY_S``; the log says why, once for each reason.
    """

    def __init__(self, config: Utterances) -> None:
        self._config = config
        self._store: Store | None = None
        self._retry_at = 0.0
        self._reported = ""

    def store(self) -> Store | None:
        """The store, or None while it cannot be had."""
        now = time.monotonic()
        if now < self._retry_at:
            return None
        if self._store is None:
            try:
                self._store = open_store(self._config)
            except StoreError as error:
                self._retry_at = now + RETRY_S
                if str(error) != self._reported:
                    self._reported = str(error)
                    log.warning("kept frames cannot be used", reason=str(error))
        return self._store

    @property
    def is_open(self) -> bool:
        """Whether it is open now."""
        return self._store is not None

    @property
    def replaced(self) -> bool:
        """Whether it is open, and another file has taken its name."""
        return self._store is not None and self._store.replaced

    def suspend(self) -> None:
        """It cannot be read: it is not to be had for ``RETRY_S``."""
        self._retry_at = time.monotonic() + RETRY_S

    def hand_over(self) -> Store | None:
        """Let go of the open store without closing it: the caller does."""
        store, self._store = self._store, None
        return store

    def reopen(self) -> None:
        """Close it, and open it anew when it is asked for next, without a pause."""
        self._retry_at = 0.0
        self.close()

    def close(self) -> None:
        """Close it; it is opened anew when it is asked for."""
        store = self.hand_over()
        if store is not None:
            store.close()
