# SPDX-License-Identifier: Apache-2.0
"""Every kernel on small inputs, checked: ``python -m gpu_check.small [--dry-run] [--once]``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from gpu_check import kernels, parity
from gpu_check.context import Context
from gpu_check.findings import Findings


def main() -> int:
    """0 where all was right. With ``--once``: large batches, one launch each, unchecked."""
    dry = "--dry-run" in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        context = Context(Findings(where / "small.json", dry), where, where, dry)
        if "--once" in sys.argv:
            kernels.once(context)
        else:
            parity.kernels_only(context)
        return 1 if context.found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
