# SPDX-License-Identifier: Apache-2.0
"""Run one part: ``python -m gpu_check.part NAME --json FILE --work FOLDER --wheels FOLDER``."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from pathlib import Path

from gpu_check.context import Context
from gpu_check.findings import CannotRunError, Findings


def main() -> int:
    """0 where it has come to its end and all its checks were good."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    found = Findings(args.json, args.dry_run)
    context = Context(found, args.work, args.wheels, args.dry_run)
    try:
        importlib.import_module(f"gpu_check.{args.name}").main(context)
    except CannotRunError as error:
        print(f"cannot run: {error}", flush=True)
        found.end("cannot run", str(error))
        return 2
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        found.end("broke", f"{type(error).__name__}: {str(error)[:300]}")
        return 1
    failed = found.failed
    found.end("failed" if failed else "ok", f"{len(failed)} checks failed" if failed else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
