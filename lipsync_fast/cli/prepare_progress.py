# SPDX-License-Identifier: Apache-2.0
"""How far ``avatar prepare`` is: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lipsync_fast.console import say

if TYPE_CHECKING:
    from lipsync_fast.prepare.request import Failure, Progress, Request, Result

_PLAIN_EVERY_S = 5.0


class Lines:
    """Progress where there is no terminal: a line for each end, and one every few seconds."""

    def __init__(self, requests: list[Request], quiet: bool) -> None:
        self._quiet, self._all = quiet, len(requests)
        self._ended = self._failed = 0
        self._frames: dict[str, int] = {}
        self._next = time.monotonic() + _PLAIN_EVERY_S

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begun(self, request: Request) -> None:
        """Nothing to say."""

    def progressed(self, request: Request, progress: Progress) -> None:
        """Remember how many frames are done."""
        if progress.stage == "looking":
            self._frames[request.name] = progress.done

    def ended(self, request: Request, outcome: Result | Failure) -> None:
        """Say so."""
        from lipsync_fast.prepare.request import Failure

        failed = isinstance(outcome, Failure)
        self._ended, self._failed = self._ended + 1, self._failed + failed
        if not self._quiet and self._all > 1:
            what = "failed" if failed else f"{outcome.frames} frames"  # type: ignore[union-attr]
            say(f"[{self._ended}/{self._all}] {outcome.name}: {what}")

    def tick(self) -> None:
        """Every few seconds, how far all are."""
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        self._next = now + _PLAIN_EVERY_S
        say(f"{self._ended} of {self._all} videos, {sum(self._frames.values())} frames looked at")


class Bars:
    """Progress on a terminal: a bar for each video at work, and one for all."""

    def __init__(self, requests: list[Request]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[stage]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._whole = self._progress.add_task("videos", total=len(requests), stage="")
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begun(self, request: Request) -> None:
        """One more bar."""
        from rich.markup import escape

        self._tasks[request.name] = self._progress.add_task(
            escape(request.name), total=None, stage="beginning"
        )

    def progressed(self, request: Request, progress: Progress) -> None:
        """Move its bar."""
        self._progress.update(
            self._tasks[request.name],
            completed=progress.done,
            total=progress.total or None,
            stage=progress.stage,
        )

    def ended(self, request: Request, outcome: Result | Failure) -> None:
        """Its bar goes, and the one for all moves."""
        self._progress.remove_task(self._tasks.pop(request.name))
        self._progress.advance(self._whole)

    def tick(self) -> None:
        """The bars draw themselves."""
