# SPDX-License-Identifier: Apache-2.0
"""What all commands share: how errors, warnings and signals become lines and exit codes.

Exit codes: 0 done; 2 wrong use, or any ``LipsyncError``; 130 Ctrl-C; 143 SIGTERM; 129 SIGHUP (the
terminal has gone); 141 the reader of standard output has gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from types import FrameType
from typing import ParamSpec

import typer

from lipsync_fast.errors import LipsyncError, spent
from lipsync_fast.extras import wrong_version
from lipsync_fast.names import shown

P = ParamSpec("P")
EXIT_ERROR, EXIT_INTERRUPT, EXIT_PIPE, EXIT_TERM = 2, 130, 141, 143


def say(line: str) -> None:
    """A line for people, on standard error (standard output belongs to results).

    Where nobody can read it any more (a terminal that has gone), nothing else is hurt.
    """
    with suppress(OSError):
        sys.stderr.write("\n".join(map(shown, line.split("\n"))) + "\n")
        sys.stderr.flush()


def warn(line: str) -> None:
    """A warning for people."""
    say(f"warning: {one_line(line)}")


def one_line(text: str) -> str:
    """``text`` with its line breaks made spaces: an error is one line.

    What else cannot be seen is escaped: names of files may hold what a terminal obeys.
    """
    return shown(" ".join(text.split("\n")).strip())


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a command may raise on purpose into one line and an exit code.

    SIGTERM and SIGHUP become exceptions as Ctrl-C does, so that cleanup runs. What the machine has
    no more of is named, too. Anything else is a defect and keeps its traceback.
    """

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with _terminable():
                command(*args, **kwargs)
        except LipsyncError as error:
            say(f"error: {one_line(str(error))}")
            raise typer.Exit(EXIT_ERROR) from None
        except BrokenPipeError:
            silence_stdout()
            raise typer.Exit(EXIT_PIPE) from None
        except (ImportError, OSError, MemoryError, RuntimeError) as error:
            reason = spent(error)
            if reason is None and isinstance(error, ImportError):
                reason = wrong_version(error.name or "")
            if reason is None:
                raise
            say(f"error: {one_line(reason)}")
            raise typer.Exit(EXIT_ERROR) from None
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(EXIT_INTERRUPT) from None

    return run


def silence_stdout() -> None:
    """Point standard output nowhere, so that Python's last flush does not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@contextmanager
def _terminable() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        for heeded in before:  # a second one must not cut the cleanup short
            signal.signal(heeded, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup's wish
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def clock(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, seconds_ = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds_:02d}" if hours else f"{minutes}:{seconds_:02d}"


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows, the first of them headings, as columns; on a terminal that is too narrow one by one."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1 << 30
    if sum(widths) + 2 * len(widths) - 2 <= columns:
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    margin = max(map(len, rows[0])) + 2
    lines = []
    for row in rows[1:]:
        lines.append(row[0])
        cells = zip(rows[0][1:], row[1:], strict=True)
        lines += [f"  {name.lower().ljust(margin)}{cell}" for name, cell in cells]
    return lines


class Progress:
    """How far a render is: a bar on a terminal, a line every few seconds elsewhere.

    Args:
        total: frames that will come, where known.
        quiet: show nothing.
        verb: what is done, for the bar.
        unit: what is counted.
    """

    _PLAIN_EVERY_S = 5.0
    _BAR_EVERY_S = 0.1

    def __init__(
        self, total: int | None, *, quiet: bool, verb: str = "rendering", unit: str = "frames"
    ) -> None:
        self._total = total
        self._verb, self._unit = verb, unit
        self._quiet = quiet
        self._terminal = sys.stderr.isatty() and not quiet
        self._begun = time.monotonic()
        self._next = self._begun + (self._BAR_EVERY_S if self._terminal else self._PLAIN_EVERY_S)
        self._done = self._found = 0
        self._bar: _Bar | None = None

    def __enter__(self) -> Progress:
        if self._terminal:
            self._bar = _Bar(self._total, self._verb, self._unit)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop(self._done)

    def advance(self, found: bool = False) -> None:
        """One more is done.

        Args:
            found: it was done already, and says nothing of how long the others take.
        """
        self._done += 1
        self._found += found
        self.tick()

    def tick(self) -> None:
        """Time has passed."""
        if self._quiet:
            return
        now = time.monotonic()
        if now < self._next:
            return
        if self._bar is not None:
            self._next = now + self._BAR_EVERY_S
            self._bar.show(self._done, self._rate(now))
        else:
            self._next = now + self._PLAIN_EVERY_S
            say(self._plain(now))

    def _rate(self, now: float) -> float:
        return (self._done - self._found) / max(1e-9, now - self._begun)

    def _plain(self, now: float) -> str:
        rate, unit = self._rate(now), self._unit
        if not self._total:
            return f"{self._done} {unit}, {rate:.1f} {unit}/s"
        percent = min(100, 100 * self._done // self._total)
        done = f"{self._done}/{self._total} {unit} ({percent}%)"
        if not rate:
            return done
        left = clock(max(0, self._total - self._done) / rate)
        return f"{done}, {rate:.1f} {unit}/s, {left} left"


class _Bar:
    """The bar itself; rich is imported only where there is a terminal."""

    def __init__(self, total: int | None, verb: str, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(
            TextColumn(verb),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
        )
        self._unit = unit
        self._task = self._progress.add_task(verb, total=total, rate="")
        self._progress.start()

    def show(self, done: int, rate: float) -> None:
        self._progress.update(self._task, completed=done, rate=f"{rate:.1f} {self._unit}/s")

    def stop(self, done: int) -> None:
        with suppress(OSError):  # the terminal may have gone
            self._progress.update(self._task, completed=done)
            self._progress.stop()
