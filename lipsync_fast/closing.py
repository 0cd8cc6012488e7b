# SPDX-License-Identifier: Apache-2.0
"""Things that are closed at the end of their ``with`` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Closing(ABC):
    """What a ``with`` block closes, however it ends."""

    @abstractmethod
    def close(self) -> None:
        """Free what is held; twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
