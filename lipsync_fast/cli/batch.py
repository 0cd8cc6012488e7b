# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast batch``: a list of recordings to a folder, or a URL, of videos."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from lipsync_fast.batch.manifest import avatar_from, read_manifest
from lipsync_fast.batch.outputs import SUMMARY, Outputs, claimed, folder_of, open_outputs
from lipsync_fast.batch.run import Run
from lipsync_fast.batch.tasks import Outcome, Recording, Settings
from lipsync_fast.console import Progress, clock, one_line, say, warn
from lipsync_fast.errors import LipsyncError, ManifestError
from lipsync_fast.machine import processors
from lipsync_fast.names import json_bytes
from lipsync_fast.objects import checked_url, is_url, shown_url
from lipsync_fast.rounding import rounded

if TYPE_CHECKING:
    from lipsync_fast.batch.on_ray import RayWorkers
    from lipsync_fast.batch.processes import Processes

EXIT_SOME_FAILED = 1
WORKER_BYTES = 1100 << 20
"""Memory that a worker with the demo avatar takes at most, in a long recording."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRequest:
    """What the command line asked for."""

    manifest: Path
    out: str
    avatar: str = "demo"
    avatars: tuple[str, ...] = ()
    start_frame: int = 0
    backend: str = "auto"
    jobs: int | None = None
    threads: int | None = None
    retries: int = 3
    ray: str | None = None
    force: bool = False
    quiet: bool = False
    json: bool = False


class BatchSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to; the object that ``--json`` writes."""

    recordings: int
    made: int
    kept: int
    """Found as they would come out."""
    failed: int
    seconds: float
    """Of video that was made."""
    wall_s: float
    realtime_factor: float
    """Seconds of video made a second of wall time."""
    retries: int
    summary: str
    """Where it is said what became of each recording."""

    def line(self) -> str:
        """For people."""
        kept = f", {self.kept} there already" if self.kept else ""
        failed = f", {self.failed} FAILED" if self.failed else ""
        return (
            f"{self.recordings} recordings: {self.made} made{kept}{failed}; {self.seconds:.1f} s of"
            f" video in {clock(self.wall_s)} ({self.realtime_factor:.1f} x real time);"
            f" {self.summary}"
        )


def batch_command(request: BatchRequest) -> None:
    """Make all recordings of a list, and report as asked.

    Raises:
        LipsyncError: nothing can be begun, or go on; what is made stays made.
        typer.Exit: some have failed.
    """
    with _own_stdout():
        summary = batch(request)
    if not request.quiet or summary.failed:
        say(one_line(summary.line()))
    if request.json:
        sys.stdout.write(json_bytes(rounded(summary)).decode() + "\n")
        sys.stdout.flush()
    if summary.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def batch(request: BatchRequest) -> BatchSummary:
    """Make all recordings of a list.

    What can be refused is refused before anything is made: the list, the outputs, the avatars.

    Raises:
        LipsyncError: nothing can be begun, or go on.
    """
    begun = time.monotonic()
    avatar = avatar_from(Path.cwd(), request.avatar)
    recordings = read_manifest(request.manifest, avatar, request.start_frame)
    names = list(dict.fromkeys(each.avatar for each in recordings))
    out = _out(request.out)
    with ExitStack() as stack:
        run = stack.enter_context(claimed(out))
        settings = _settings(request, out, run, len(recordings))
        workers = stack.enter_context(closing(_workers(request, settings, names, len(recordings))))
        outputs = open_outputs(out, run)
        retries = 0

        def on_retry(recording: Recording, reason: str) -> None:
            nonlocal retries
            retries += 1
            if not request.quiet:
                warn(f"{recording.out}: {reason}; it is tried again")

        def on_end(recording: Recording, outcome: Outcome) -> None:
            if outcome.state == "failed":
                say(f"failed: {one_line(f'{recording.out}: {outcome.error}')}")
            progress.advance(found=outcome.state == "kept")

        work = Run(recordings, request.retries, on_end, on_retry)
        _write_summary(outputs, work)  # so it is known that it can be written
        progress = stack.enter_context(
            Progress(len(recordings), quiet=request.quiet, unit="recordings")
        )
        try:
            work.go(workers, progress.tick)
        except BaseException:
            workers.close()
            with suppress(LipsyncError):
                _write_summary(outputs, work)
            raise
        _write_summary(outputs, work)
    wall = time.monotonic() - begun
    seconds = sum(each.seconds for each in work.ends() if each.state == "made")
    return BatchSummary(
        recordings=len(recordings),
        made=work.count("made"),
        kept=work.count("kept"),
        failed=work.count("failed"),
        seconds=seconds,
        wall_s=wall,
        realtime_factor=seconds / wall,
        retries=retries,
        summary=f"{shown_url(out).rstrip('/')}/{SUMMARY}",
    )


@contextmanager
def _own_stdout() -> Iterator[None]:
    """Standard output for the result alone: what libraries print (Ray, of nodes that die) goes to
    standard error."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(own, 1)
        os.close(own)


def _out(out: str) -> str:
    """The outputs as an absolute folder, or a URL."""
    if is_url(out):
        checked_url(out)
        if "?" in out:
            raise ManifestError(f"--out {shown_url(out)}?…: a signed URL is good for one object")
    folder = folder_of(out)
    return out if folder is None else str(folder)


def _settings(request: BatchRequest, out: str, run: str, recordings: int) -> Settings:
    return Settings(
        out=out,
        run=run,
        avatars=tuple(
            folder if is_url(folder) else str(Path(folder).absolute()) for folder in request.avatars
        ),
        backend=request.backend,
        threads=request.threads or _threads(request, recordings),
        force=request.force,
    )


def _threads(request: BatchRequest, recordings: int) -> int:
    """Threads of each worker: what there is, divided among them; on a cluster, one."""
    return 1 if request.ray else max(1, processors() // _jobs(request, recordings))


def _jobs(request: BatchRequest, recordings: int) -> int:
    """Workers on this machine: one for each processor, as far as its memory goes."""
    from lipsync_fast.engine.caches import within_memory

    if request.jobs:
        return min(request.jobs, recordings)
    room = within_memory(1 << 62, 3 / 4) // WORKER_BYTES
    threads = request.threads or 1
    return max(1, min(processors() // threads, room, recordings))


def _workers(
    request: BatchRequest, settings: Settings, avatars: list[str], recordings: int
) -> Processes | RayWorkers:
    """Those who do the work, once it is known that they can.

    Raises:
        LipsyncError: they cannot.
    """
    if request.ray is None:
        from lipsync_fast.avatars.package import AvatarPackage
        from lipsync_fast.batch.processes import Processes
        from lipsync_fast.cli.fetching import found_avatar

        for name in avatars:
            AvatarPackage.open(found_avatar(name, settings.avatars, request.quiet)).close()
        return Processes(settings, _jobs(request, recordings))
    from lipsync_fast.batch.on_ray import RayWorkers

    cluster = RayWorkers(settings, request.ray, request.jobs)
    try:
        cluster.check(avatars)
    except BaseException:
        cluster.close()
        raise
    return cluster


def _write_summary(outputs: Outputs, work: Run) -> None:
    lines = (json_bytes(rounded(each)) for each in work.ends())
    outputs.write(SUMMARY, b"".join(line + b"\n" for line in lines))
