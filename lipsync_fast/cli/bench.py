# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast bench``: what this machine reaches, and a comparison of two results."""

from __future__ import annotations

from pathlib import Path

import msgspec
import typer

from lipsync_fast.console import say
from lipsync_fast.errors import ConfigError, LipsyncError


def bench_command(
    *,
    quick: bool,
    out: Path | None,
    parts: list[str],
    rounds: int | None,
    duration: float | None,
    backend: str,
    gpus: str,
    threads: int,
    compare: tuple[Path, Path] | None,
) -> None:
    """Measure, or compare two files.

    Raises:
        LipsyncError: an option is wrong, a file cannot be read, or a measurement was wrong.
    """
    from dataclasses import replace

    from lipsync_fast.benchmark.run import PARTS, Plan, run
    from lipsync_fast.engine.backends import create_backend

    if compare is not None:
        _compare(*compare)
        return
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ConfigError(f"--part {unknown[0]}: expected one of {', '.join(PARTS)}")
    create_backend(backend).close()  # that there is one
    plan = replace((Plan.quick if quick else Plan.full)(threads), gpus=gpus)
    if parts:
        plan = replace(plan, parts=tuple(p for p in PARTS if p in parts))
    if rounds is not None:
        plan = replace(plan, rounds=rounds)
    if duration is not None:
        plan = replace(plan, seconds=duration, live_s=max(2 * duration, 4.0))
    report = run(plan, say)
    if out is not None:
        from lipsync_fast.benchmark.report import write

        for path in write(report, out):
            say(f"wrote {path}")
    typer.echo(report.sentence)
    wrong = [row.name for row in report.rows if not row.is_right]
    if wrong:
        raise LipsyncError(f"frames were wrong, whatever the speed: {', '.join(wrong)}")


def _compare(before: Path, after: Path) -> None:
    from lipsync_fast.benchmark.compare import compare
    from lipsync_fast.benchmark.rows import SCHEMA
    from lipsync_fast.benchmark.run import read

    reports = []
    for path in (before, after):
        try:
            report = read(path)
        except OSError as error:
            raise LipsyncError(f"{path}: cannot be read ({error.strerror})") from None
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise LipsyncError(f"{path}: is not a result of the benchmark ({error})") from None
        if report.schema != SCHEMA:
            raise LipsyncError(f"{path}: schema {report.schema}, this version reads {SCHEMA}")
        reports.append(report)
    typer.echo(compare(*reports), nl=False)
