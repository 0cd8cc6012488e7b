# SPDX-License-Identifier: Apache-2.0
"""What every program that measures has: options, medians over rounds, and a result in a file."""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lipsync_fast.benchmark.processes import machine
from lipsync_fast.version import __version__


def options(about: str | None, **defaults: Any) -> argparse.Namespace:
    """A program's command line, read by its defaults: ``options(__doc__, rounds=5, out=None)``.

    Args:
        about: the program's docstring, which says what the options mean: it is the help.
        defaults: of each option. None: a path that need not be given; False: a switch; a list:
            one value or more; else one of the default's type.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true")
        elif isinstance(default, list):
            parser.add_argument(
                flag, nargs="+", type=type(default[0]) if default else str, default=default
            )
        else:
            kind = Path if default is None else type(default)
            kind = Path if issubclass(kind, Path) else kind
            parser.add_argument(flag, type=kind, default=default)
    return parser.parse_args()


def medians(rounds: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The median of each figure of each row over the rounds, which all have the same."""
    return {
        name: {key: statistics.median(r[name][key] for r in rounds) for key in row}
        for name, row in rounds[0].items()
    }


def about_this_machine() -> dict[str, Any]:
    """The version and the machine: for runs whose command line names what nobody else shall see."""
    return {"version": __version__, "machine": machine()}


def about_this_run() -> dict[str, Any]:
    """The command line, the version, and the machine: without them a figure says nothing."""
    return {"command": shlex.join(["python", *sys.argv])} | about_this_machine()


def keep(path: Path | None, **found: Any) -> None:
    """Write a program's result, with ``about_this_run``; nothing without a path."""
    if path is not None:
        write(path, about_this_run() | found)


def write(path: Path, result: Any, indent: int | None = 1) -> None:
    """Write a result as JSON; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=indent) + "\n")
