# SPDX-License-Identifier: Apache-2.0
"""One video in a process of its own: ``python -m lipsync_fast.prepare.worker``.

It reads one ``Request`` as a line of JSON from standard input, and writes ``Message``s as lines of
JSON to standard output. It ends when standard input does: then the process that started it has
gone. What detectors print goes to standard error.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from lipsync_fast.errors import LipsyncError
from lipsync_fast.names import json_bytes, json_value
from lipsync_fast.prepare.one import prepare_one
from lipsync_fast.prepare.request import Failure, Message, Progress, Request

_REPORT_EVERY_S = 0.1


def main() -> int:
    """Prepare the video that standard input names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it sees to it
    out = os.dup(1)
    os.dup2(2, 1)
    request = json_value(sys.stdin.buffer.readline(), Request)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    sender = _Sender(out)
    try:
        sender.send(prepare_one(request, sender.on_progress))
    except LipsyncError as error:
        kept = request.work.is_dir()
        sender.send(Failure(name=request.name, video=request.video, reason=str(error), kept=kept))
    return 0


def _leave_with_parent() -> None:
    while os.read(0, 1 << 12):
        pass
    os._exit(1)


class _Sender:
    def __init__(self, fd: int) -> None:
        self._fd, self._next, self._stage = fd, 0.0, ""

    def on_progress(self, progress: Progress) -> None:
        """How far it is, at most ten times a second."""
        now = time.monotonic()
        if now >= self._next or progress.stage != self._stage:
            self._next, self._stage = now + _REPORT_EVERY_S, progress.stage
            self.send(progress)

    def send(self, message: Message) -> None:
        data = json_bytes(message) + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]


if __name__ == "__main__":
    sys.exit(main())
