# SPDX-License-Identifier: Apache-2.0
"""One Python target under atheris: ``run_python.py TARGET [libFuzzer's options and folders]``."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["lipsync_fast", "targets", "zipfile", "pickletools"]):
    import targets


def main() -> None:
    """Run until libFuzzer ends it."""
    target = targets.TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
