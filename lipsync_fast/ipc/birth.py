# SPDX-License-Identifier: Apache-2.0
"""How a child begins, before anything that takes time: it is tied to the supervisor's life.

    python -P -m lipsync_fast.ipc.birth SUPERVISOR MODULE

The kernel kills a child whose supervisor is gone, whatever it does at that moment: it may be
loading an avatar at the lowest priority, hang, or be stopped, and would hear of it late or never.
Then ``main`` of the module runs.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

_PR_SET_PDEATHSIG = 1


def end_with(supervisor: int) -> None:
    """Have the kernel end this process when the one that has started it is gone.

    That one must have started it from its main thread: the end of any other thread that starts a
    process counts as its starter's.

    Args:
        supervisor: its process; where that is gone already, this one ends now.
    """
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(1)


def main() -> None:
    """Be a child of the supervisor."""
    end_with(int(sys.argv[1]))
    import_module(sys.argv[2]).main()


if __name__ == "__main__":
    main()
