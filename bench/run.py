# SPDX-License-Identifier: Apache-2.0
"""What this machine reaches, next to the ways of working that lipsync-fast replaces.

    python bench/run.py --quick --out DIR       # under three minutes
    python bench/run.py --out DIR               # sweeps
    python bench/run.py --compare A.json B.json

The same as ``lipsync-fast bench``; all options: ``--help``. Peers need the extra ``train``, plots
need matplotlib.
"""

import sys

from lipsync_fast.cli.main import run

sys.argv.insert(1, "bench")
run()
