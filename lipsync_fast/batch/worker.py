# SPDX-License-Identifier: Apache-2.0
"""A worker in a process of its own: ``python -P -m lipsync_fast.batch.worker PARENT``.

It reads ``Settings`` as the first line of standard input, then ``Recording``s, one at a time, and
writes an ``Outcome`` for each to standard output. It ends when standard input does. What libraries
print goes to standard error. It cleans up nothing: who ends it does.
"""

from __future__ import annotations

import os
import signal
import sys

from lipsync_fast.batch.tasks import Outcome, Recording, Settings
from lipsync_fast.ipc.birth import end_with
from lipsync_fast.names import json_bytes, json_value


def main() -> int:
    """Do what standard input says, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it sees to it
    end_with(int(sys.argv[1]))
    out = os.dup(1)
    os.dup2(2, 1)
    settings: Settings = json_value(sys.stdin.buffer.readline(), Settings)
    from lipsync_fast.batch.work import Worker

    with Worker(settings) as worker:
        while line := sys.stdin.buffer.readline():
            recording: Recording = json_value(line, Recording)
            _send(out, worker.do(recording))
    return 0


def _send(out: int, outcome: Outcome) -> None:
    data = json_bytes(outcome) + b"\n"
    while data:
        data = data[os.write(out, data) :]


if __name__ == "__main__":
    sys.exit(main())
