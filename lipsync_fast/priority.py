# SPDX-License-Identifier: Apache-2.0
"""How an engine that nobody waits for leaves the processors to those that work.

Linux schedules each session of processes ("autogroup") as one, where that is switched on and no
control group divides the processors: then what counts is the session's own priority, and the nice
value of a thread only within it. Elsewhere, a thread's nice value is what counts, and it cannot be
taken back without a privilege; so the work is given to a thread that ends with it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

LOWEST = 19
GENTLE = 10
"""A tenth of what others get, where they would take all: for what somebody waits for."""
_AUTOGROUP = "/proc/{}/autogroup"
Result = TypeVar("Result")


def lower_thread() -> None:
    """Give the calling thread, and those that it starts, the lowest priority, for ever."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)


def in_background(work: Callable[[], Result]) -> Result:
    """Do something in a thread of the lowest priority, and wait for it."""
    future: Future[Result] = Future()

    def run() -> None:
        lower_thread()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="lipsync-background").start()
    return future.result()


def started_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """A pool whose threads run already, with the priority of this thread.

    Else each is started by who first has work for it: if that one has the lowest priority for a
    while, the pool's thread keeps it for ever.
    """
    pool = ThreadPoolExecutor(threads, name)
    all_run = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(all_run.wait)
    all_run.wait()
    return pool


def lower_session(pid: int, value: int = LOWEST) -> None:
    """Give the session that a process leads a low priority; its leader may take it back."""
    _set(value, pid)


def restore_session() -> bool:
    """Take back what this process's session was lowered by.

    Returns:
        False where it is to be tried again: the system limits how often.
    """
    return _set(0)


def _set(value: int, pid: int | str = "self") -> bool:
    try:
        with open(_AUTOGROUP.format(pid), "w") as file:
            file.write(str(value))
    except OSError as error:
        return isinstance(error, FileNotFoundError | PermissionError) and value == 0
    return True
