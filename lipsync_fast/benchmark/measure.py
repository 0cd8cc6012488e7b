# SPDX-License-Identifier: Apache-2.0
"""Single measurements: each starts what it needs, or uses a server that runs, and gives rows."""

from __future__ import annotations

import bisect
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import trio
from numpy.typing import NDArray
from PIL import Image

import lipsync_fast
from lipsync_fast.audio.windows import frame_count
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark.burst import Burst, Look, bursts
from lipsync_fast.benchmark.hops import profile
from lipsync_fast.benchmark.load import Sample, Talker, figures
from lipsync_fast.benchmark.processes import pids, usage
from lipsync_fast.benchmark.rows import Row
from lipsync_fast.benchmark.speech import Expected
from lipsync_fast.client import VideoFrame
from lipsync_fast.client.local import LocalServer
from lipsync_fast.ipc.status import ServerStatus
from lipsync_fast.timing import NS_PER_S

PLAIN = Look()
COMPARE_EVERY = 50
MOST_COMPARED = 24
"""Frames of one measurement that are compared: each takes as long as a frame takes."""
NEAR_MEAN, NEAR_MOST = 2.0, 10
"""Grey levels by which a frame of a GPU may differ from the CPU's, on average over the pixels that
differ at all and at most: two levels before coding, and what coding makes of them."""
PREPARED_S = 30.0
"""How long engines may take to prepare the avatar's frames before anything is measured."""


@contextmanager
def server(**sections: Any) -> Iterator[LocalServer]:
    """A server of our own, with its avatar's frames prepared; quiet but for errors.

    Nothing that it says is kept: all of it is made each time. Frames for which there is no time
    come late, so that they are counted; none is left out.
    """
    live = {"half_rate": False} | sections.pop("live", {})
    config = {"log": {"level": "error"}, "utterances": {"disk_mb": 0}, "live": live} | sections
    with LocalServer(config) as running:
        wait_until_prepared(running)
        yield running


def wait_until_prepared(running: LocalServer) -> None:
    """Until the default avatar's image halves are no longer growing."""
    until, before = time.monotonic() + PREPARED_S, -1
    while time.monotonic() < until:
        caches = [e.load.cache_bytes for e in running.status().engines if e.state == "ready"]
        now = sum(size for cache in caches for size in cache.values())
        if now == before and now > 0:
            return
        before = now
        time.sleep(0.6)


class Using:
    """Processor time and memory of a server's processes over a measurement."""

    def __init__(self, running: LocalServer) -> None:
        self._running = running
        self._names = _roles(running.status())
        self._before = self._cpu()
        self._spent = self._spent_s()
        self._own = time.process_time()

    @property
    def exact(self) -> bool:
        """Whether its engines make the very bytes that ``render`` gives."""
        return all(engine.device == "cpu" for engine in self._running.status().engines)

    def _cpu(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for pid, role in self._names.items():
            used = usage(pid)
            if used is not None:
                found[role] = found.get(role, 0.0) + used.cpu_s
        return found

    def _spent_s(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for engine in self._running.status().engines:
            for part, seconds in engine.load.spent_s.items():
                found[part] = found.get(part, 0.0) + seconds
        return found

    def into(self, row: Row, frames: int) -> None:
        """Fill in what was used for so many frames."""
        own = time.process_time() - self._own
        after, parts = self._cpu(), self._spent_s()
        spent = {role: after[role] - self._before.get(role, 0.0) for role in after}
        spent["load generator"] = own
        if frames:
            row.cpu_ms_per_frame = {k: round(v * 1e3 / frames, 3) for k, v in spent.items()}
            grown = {k: v - self._spent.get(k, 0.0) for k, v in parts.items()}
            row.engine_ms_per_frame = {k: round(v * 1e3 / frames, 3) for k, v in grown.items()}
        for name, pid in pids(self._running.status()).items():
            used = usage(pid)
            if used is not None:
                row.private_mb[name], row.shared_mb[name] = used.private_mb, used.shm_mb


def _roles(status: ServerStatus) -> dict[int, str]:
    found = {status.pid: "supervisor"}
    for front in status.fronts:
        found[front.pid] = "front"
    for engine in status.engines:
        if engine.state in ("ready", "spare"):
            found[engine.pid] = "engine" if engine.state == "ready" else "spare engine"
    return found


def throughput(
    running: LocalServer,
    name: str,
    pcm: NDArray[np.int16],
    seconds: float,
    *,
    sessions: int,
    avatars: Mapping[str, str] | None = None,
    look: Look = PLAIN,
) -> Row:
    """Frames as fast as they come, from sound in to bytes out.

    Args:
        avatars: name at the server to name or path of the package; sessions take them in turn.
    """
    avatars = avatars or {"demo": "demo"}
    row = Row(
        kind="throughput",
        name=name,
        settings={
            "sessions": sessions,
            "avatars": len(avatars),
            "content": look.content,
            "quality": look.quality,
            "max_width": look.max_width,
        },
    )
    using = Using(running)
    all_of = partial(
        bursts, avatars=list(avatars), sessions=sessions, look=look, keep_every=COMPARE_EVERY
    )
    found, first, until = trio.run(all_of, running.url, pcm, seconds)
    fill(row, using, found, first, until)
    if look == PLAIN:
        compare_all(row, found, avatars, pcm, exact=using.exact)
    return row


def fill(row: Row, using: Using, found: Sequence[Burst], first: int, until: int) -> None:
    """What bursts have come to, counted between two moments."""
    arrivals = sorted(t for b in found for t in b.arrivals)
    row.frames = bisect.bisect_right(arrivals, until) - bisect.bisect_right(arrivals, first)
    row.seconds = round((until - first) / NS_PER_S, 3)
    row.frames_per_s = round(row.frames / row.seconds, 2) if row.seconds > 0 else 0.0
    row.bytes_per_frame = round(sum(b.bytes for b in found) / max(1, len(arrivals)))
    row.wrong = [words for b in found for words in b.wrong]
    if row.frames_per_s == 0:
        row.wrong.append("no frames came")
    using.into(row, len(arrivals))


def compare_all(
    row: Row,
    found: Sequence[Burst],
    avatars: Mapping[str, str],
    pcm: NDArray[np.int16],
    *,
    exact: bool,
) -> None:
    """Compare the sampled frames of bursts, some of each avatar (name there to name or path)."""
    for name, path in avatars.items():
        some = [s for b in found if b.avatar == name for s in b.samples]
        most = -(-MOST_COMPARED // len(avatars))
        compare(row, some, path, pcm, most=most, exact=exact)


def live(
    running: LocalServer,
    name: str,
    pcm: NDArray[np.int16],
    seconds: float,
    *,
    sessions: int,
    avatar: str = "demo",
    trace: Path | None = None,
) -> Row:
    """Sessions that speak in real time on clocks of their own, whatever the server does.

    Args:
        trace: where the server writes the hops of its frames (``log.trace``), if it does.
    """
    row = Row(kind="live", name=name, settings={"sessions": sessions})
    using = Using(running)
    begun = time.monotonic_ns()

    async def talk() -> list[Talker]:
        talkers = [Talker(k, running.url, avatar, pcm, 0.4, COMPARE_EVERY) for k in range(sessions)]
        async with trio.open_nursery() as nursery:
            begin = time.monotonic_ns() + NS_PER_S // 2
            end = begin + int(seconds * NS_PER_S)
            for k, talker in enumerate(talkers):
                offset = int(k * NS_PER_S * 0.33) % (NS_PER_S // 2)
                nursery.start_soon(talker.run, begin + offset, end, trio.Event())
        return talkers

    talkers = trio.run(talk)
    row.seconds = round((time.monotonic_ns() - begun) / NS_PER_S, 3)
    with AvatarPackage.open(AvatarLibrary().find(avatar)) as package:
        window = package.manifest.audio
    notes = [t.notes for t in talkers]
    found = figures(notes, window, frame_count(len(pcm)))
    row.frames = found.frames
    row.frames_per_s = round(found.frames / row.seconds, 2)
    row.expected, row.late, row.lost = found.expected, found.late, found.lost
    row.twice, row.skipped = found.twice + found.out_of_order, found.skipped
    row.refused = found.refused
    row.settings["utterances"] = found.utterances + found.refused
    row.latency_ms = found.latency_ms()
    way = None if trace is None else profile(trace, notes, window, len(pcm))
    if way is not None:
        row.hops_ms, row.traced, row.mean_ms = way.hops_ms, way.traced, way.mean_ms
    row.wrong = list(found.errors)
    if found.frames:
        row.bytes_per_frame = round(found.megabytes * 1e6 / found.frames)
    using.into(row, sum(len(n.frames) for n in notes))
    compare(row, [s for n in notes for s in n.samples], avatar, pcm, exact=using.exact)
    return row


def idle(running: LocalServer, name: str, seconds: float, *, sessions: int) -> Row:
    """Sessions in which nobody speaks: what showing the avatar's own pictures costs."""
    row = Row(kind="live", name=name, settings={"sessions": sessions, "speaking": 0})

    async def look() -> int:
        frames = 0

        async def watch() -> None:
            nonlocal frames
            async with lipsync_fast.connect(running.url) as session:
                async for event in session:
                    frames += isinstance(event, VideoFrame)

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(sessions):
                    nursery.start_soon(watch)
        return frames

    using, begun = Using(running), time.monotonic()
    row.frames = trio.run(look)
    row.seconds = round(time.monotonic() - begun, 3)
    row.frames_per_s = round(row.frames / row.seconds, 2)
    using.into(row, row.frames)
    return row


def compare(
    row: Row,
    samples: list[Sample],
    avatar: str,
    pcm: NDArray[np.int16],
    *,
    most: int = MOST_COMPARED,
    exact: bool,
) -> None:
    """Whether sampled frames are what ``render`` gives for the same sound.

    Args:
        exact: byte for byte, as CPU engines make them; else within what a GPU may round otherwise.
    """
    if not samples:
        return
    step = -(-len(samples) // most)
    expected = Expected(avatar, pcm)
    try:
        for sample in samples[::step]:
            row.compared += 1
            wanted = expected.jpeg(sample.frame, sample.index)
            same = wanted == sample.jpeg
            row.different += not (same or (not exact and is_near(wanted, sample.jpeg)))
    finally:
        expected.close()


def is_near(wanted: bytes, found: bytes) -> bool:
    """Whether two JPEGs show the same to some grey levels."""
    a, b = (np.asarray(Image.open(io.BytesIO(jpeg)), np.int16) for jpeg in (wanted, found))
    if a.shape != b.shape:
        return False
    apart = np.abs(a - b)
    changed = apart[apart.any(2)]
    return not len(changed) or bool(apart.max() <= NEAR_MOST and changed.mean() <= NEAR_MEAN)


def timed(name: str, round_: int, numbers: list[int], make: Callable[[list[int]], int]) -> Row:
    """Let a peer make some frames; ``make`` gives their bytes."""
    begun = time.perf_counter()
    size = make(numbers)
    seconds = time.perf_counter() - begun
    return Row(
        kind="peer",
        name=name,
        round=round_,
        frames=len(numbers),
        seconds=round(seconds, 3),
        frames_per_s=round(len(numbers) / seconds, 3),
        bytes_per_frame=round(size / len(numbers)),
    )
