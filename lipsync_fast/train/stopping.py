# SPDX-License-Identifier: Apache-2.0
"""Signals end a training after its present step, with a checkpoint; a second one, at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

_HEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """Whether to stop; use as a context in the main thread."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Stop:
        for number in _HEEDED:
            if signal.getsignal(number) is signal.SIG_IGN and number == signal.SIGHUP:
                continue  # nohup's wish
            self._before[number] = signal.signal(number, self._heed)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise self.reason(number)
        self.signal = number

    @staticmethod
    def reason(number: int) -> BaseException:
        """How the process ends because of a signal."""
        return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
