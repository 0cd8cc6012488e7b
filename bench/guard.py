# SPDX-License-Identifier: Apache-2.0
"""Fails where ours is no longer so much faster than ONNX Runtime, frame by frame.

    python bench/guard.py [--least 2.5] [--rounds 3]

The reference's network at full size, both ways in turn, on the same machine: a ratio, which says
the same on a slow machine and on a fast one. Fails when the median ratio of the rounds is below
``--least`` twice in a row, or when a frame is wrong. About a minute, two when it fails.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from lipsync_fast.benchmark import program
from lipsync_fast.benchmark.peers import OnnxPeer
from lipsync_fast.benchmark.rows import Spread, ratios
from lipsync_fast.benchmark.run import Plan, run

LEAST = 2.5
"""docs/performance.md found 3.6; what is between is for noise."""
TRIES = 2


def measured(rounds: int) -> Spread:
    """The ratio of the rounds.

    Raises:
        SystemExit: a frame was wrong.
    """
    plan = replace(Plan.quick(0), parts=("peers",), rounds=rounds, peer_frames={"b": 8})
    report = run(plan)
    wrong = [f"{row.name}: {row.wrong or row}" for row in report.rows if not row.is_right]
    if wrong:
        raise SystemExit(f"frames are wrong: {wrong}")
    return Spread.of(ratios(report.rows, OnnxPeer.name))


def main() -> int:
    """0 where it is fast enough."""
    args = program.options(__doc__, least=LEAST, rounds=3)
    for _ in range(TRIES):
        found = measured(args.rounds)
        words = f"{found.median:.1f}x {OnnxPeer.name} ({found.least:.1f} to {found.most:.1f})"
        if found.median >= args.least:
            print(f"{words}: enough, {args.least:g}x is asked for")
            return 0
        print(f"{words}: less than {args.least:g}x", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
