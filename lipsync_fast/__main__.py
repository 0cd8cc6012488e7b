# SPDX-License-Identifier: Apache-2.0
"""``python -m lipsync_fast`` is the command ``lipsync-fast``."""

from lipsync_fast.cli.main import run

if __name__ == "__main__":
    run()
