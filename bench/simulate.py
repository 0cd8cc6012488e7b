# SPDX-License-Identifier: Apache-2.0
"""Simulate a server with 1 to 8 GPUs and up to 2,000 sessions that speak. A simulation: not a
measurement, and by default from service times that are themselves predicted (bench/predict.py).

    python bench/simulate.py [--times FILE] [--out FOLDER] [--quick] [--draw]

``--times``: a file such as results/simulate/predicted.json; once they are measured, with "measured"
for its ``kind``, which is what the picture then says.

Sessions speak all the time, 25 frames a second, each at a phase of its own; an utterance of 3 to
9 s is followed by another session's. With bursts, one of ten asks for two seconds of frames at once
instead, every two seconds, which have no deadline. A frame passes

    arrival ─► the engine's loop (a part of ``host_us_per_frame``) ─► waits, earliest deadline first
    ─► a batch of one of the captured sizes, begun whenever the device is free ─► ``wake_us``
    ─► the loop again ─► in the ring

Ours places sessions on engines with the server's own rule (frontend/engines/placement.py), one
front, and cuts batches with its own (engine/backends/cuda/graphs.py). The perfect scheduler has one
queue for all devices, so that none idles while a frame waits anywhere; its loops, devices and
batches are the same. A frame that cannot be in time is skipped by both.

Not in it: the fronts' own time, processors shared by engines, avatars that not every engine holds,
caches that miss, an engine's second batch that is queued while the first one runs.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lipsync_fast.benchmark import program
from lipsync_fast.engine.backends.cuda.graphs import first_batch
from lipsync_fast.frontend.engines.placement import Placement
from lipsync_fast.timing import FPS

HERE = Path(__file__).resolve().parent / "results" / "simulate"
GPUS = 1, 2, 4, 8
SESSIONS = 1, 10, 25, 50, 75, 100, 125, 150, 175, 200, 300, 400, 500, 600, 800, 1000, 1300, 2000
WARM_S, COUNTED_S = 2.0, 4.0
"""Seconds of a run that are not counted, and that are."""
IN_TIME_S = 0.054
"""From the last needed sample to the ring: the server's margin of 66 ms, less the 12 ms that it
keeps for the way out."""
P99_GOAL_S = 0.040
JITTER_S = 0.004
BURST, BURST_FRAMES = 0.1, 50
HEADROOM = 0.8
"""Share of the capacity that the server lets sessions use (live.headroom)."""
NEVER = 1e9
POLICIES = {"ours": "placement by session", "perfect": "one queue for all"}


@dataclass
class Times:
    """Seconds that things take.

    Attributes:
        batch: by size; host: of the loop, for each frame; wake: from a batch's end to its answers.
    """

    batch: dict[int, float]
    host: float
    wake: float

    @classmethod
    def of(cls, found: dict[str, Any]) -> Times:
        """From a file's ``times``."""
        batch = {int(n): ms / 1e3 for n, ms in found["batch_ms"].items()}
        return cls(batch, found["host_us_per_frame"] / 1e6, found["wake_us"] / 1e6)

    @property
    def capacity(self) -> float:
        """Frames a second of an engine that is never without work."""
        device = max(n / seconds for n, seconds in self.batch.items())
        return min(device, 1 / self.host)


@dataclass(order=True)
class Frame:
    """A job, by its deadline."""

    deadline: float
    number: int
    arrived: float = field(compare=False)
    engine: Device = field(compare=False, repr=False)


@dataclass(eq=False)
class Device:
    """An engine: its loop and its GPU. What Placement asks of a Candidate."""

    name: str
    capacity: float
    queue: list[Frame]
    frames_per_s: float = 0.0
    backlog: int = 0
    loop_free: float = 0.0
    busy: bool = False
    made: int = 0
    busy_s: float = 0.0


class Run:
    """One simulation. All times: seconds since its beginning."""

    def __init__(
        self, times: Times, gpus: int, sessions: int, policy: str, *, bursts: bool, seed: int = 1
    ) -> None:
        self.times, self.policy, self.bursts = times, policy, bursts
        shared: list[Frame] = []
        self.devices = [
            Device(f"gpu-{k}", times.capacity, shared if policy == "perfect" else [])
            for k in range(gpus)
        ]
        self.sizes = sorted(times.batch)
        self.random = random.Random(seed)
        self.placement = Placement()
        self.events: list[tuple[float, int, Any]] = []
        self.numbers = itertools.count(1)
        self.latencies: list[float] = []
        self.in_time = self.late = self.burst_made = 0
        self.batches: Counter[int] = Counter()
        self.until = WARM_S + COUNTED_S
        for _ in range(sessions):
            self._begin_session(self.random.random())
        self._at(1.0, self._report)

    def _at(self, when: float, what: Any) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), what))

    def go(self) -> Run:
        """To the end."""
        while self.events and self.events[0][0] < self.until + 1:
            when, _, what = heapq.heappop(self.events)
            what(when)
        return self

    # ------------------------------------------------------------ sessions
    def _begin_session(self, when: float) -> None:
        number = next(self.numbers)
        if self.bursts and self.random.random() < BURST:
            self._at(when, lambda now: self._burst(now, number))
        else:
            last = when + self.random.uniform(3.0, 9.0)
            self._at(when, lambda now: self._speak(now, number, when, last))

    def _speak(self, now: float, number: int, slot: float, last: float) -> None:
        self._arrive(now, number, now + IN_TIME_S)
        following = slot + 1 / FPS
        if following > self.until:
            return
        if following > last:
            self.placement.forget(number)
            self._begin_session(following + self.random.random() / FPS)
        else:
            when = max(now, following + self.random.random() * JITTER_S)
            self._at(when, lambda now: self._speak(now, number, following, last))

    def _burst(self, now: float, number: int) -> None:
        for _ in range(BURST_FRAMES):
            self._arrive(now, number, NEVER)
        following = now + BURST_FRAMES / FPS
        if following < self.until:
            self._at(following, lambda now: self._burst(now, number))

    # ------------------------------------------------------------ engines
    def _report(self, now: float) -> None:
        """What fronts are told each second."""
        for device in self.devices:
            device.frames_per_s, device.made = float(device.made), 0
        self._at(now + 1.0, self._report)

    def _arrive(self, now: float, session: int, deadline: float) -> None:
        if self.policy == "perfect":
            device = min(self.devices, key=lambda d: d.loop_free)
        else:
            device = self.placement.choose(self.devices, session, int(now * 1e9))
        device.backlog += 1
        device.loop_free = max(now, device.loop_free) + self.times.host / 2
        frame = Frame(deadline, next(self.numbers), now, device)
        self._at(device.loop_free, lambda now: self._ready(now, frame))

    def _ready(self, now: float, frame: Frame) -> None:
        heapq.heappush(frame.engine.queue, frame)
        if not frame.engine.busy:
            self._start(now, frame.engine)
        elif self.policy == "perfect":
            idle = next((d for d in self.devices if not d.busy), None)
            if idle is not None:
                self._start(now, idle)

    def _start(self, now: float, device: Device) -> None:
        queue = device.queue
        while queue:
            size, count = first_batch(len(queue), self.sizes)
            # As the engine does, by what frames have taken from their beginning to the ring.
            made = max(now + self.times.batch[size] + self.times.wake, device.loop_free)
            if made + count * self.times.host / 2 > queue[0].deadline:
                self._skip(heapq.heappop(queue))
                continue
            self._compute(now, device, size, [heapq.heappop(queue) for _ in range(count)])
            return

    def _compute(self, now: float, device: Device, size: int, batch: list[Frame]) -> None:
        device.busy, takes = True, self.times.batch[size]
        if WARM_S <= now < self.until:
            self.batches[size] += 1
            device.busy_s += takes
        self._at(now + takes, lambda now: self._done(now, device, batch))

    def _skip(self, frame: Frame) -> None:
        frame.engine.backlog -= 1
        self.late += self._counts(frame)

    def _counts(self, frame: Frame) -> bool:
        return WARM_S <= frame.arrived < self.until

    def _done(self, now: float, device: Device, batch: list[Frame]) -> None:
        device.busy = False
        self._start(now, device)
        device.loop_free = max(now + self.times.wake, device.loop_free)
        for frame in batch:
            device.loop_free += self.times.host / 2
            frame.engine.backlog -= 1
            device.made += 1
            if not self._counts(frame):
                continue
            if frame.deadline == NEVER:
                self.burst_made += device.loop_free < self.until
                continue
            took = device.loop_free - frame.arrived
            self.latencies.append(took)
            if took <= IN_TIME_S:
                self.in_time += 1
            else:
                self.late += 1

    # ------------------------------------------------------------ results
    def row(self) -> dict[str, Any]:
        """What came of it."""
        asked = max(1, self.in_time + self.late)
        ms = [1e3 * float(q) for q in np.quantile(self.latencies or [np.nan], (0.5, 0.99, 1.0))]
        size = sum(n * count for n, count in self.batches.items())
        return {
            "frames_per_s": round((self.in_time + self.burst_made) / COUNTED_S, 1),
            "late": round(self.late / asked, 5),
            "p50_ms": round(ms[0], 2),
            "p99_ms": round(ms[1], 2),
            "most_ms": round(ms[2], 2),
            "batch": round(size / max(1, sum(self.batches.values())), 1),
            "busy": round(sum(d.busy_s for d in self.devices) / len(self.devices) / COUNTED_S, 3),
        }

    def serves(self) -> bool:
        """Whether sessions are served as is wished: p99 below 40 ms, one of a thousand late."""
        row = self.row()
        return bool(row["p99_ms"] < 1e3 * P99_GOAL_S and row["late"] < 1e-3)


def most_sessions(times: Times, gpus: int, policy: str) -> int:
    """How many live sessions are served as is wished, to two in a hundred; at most what the devices
    can make."""
    low, high = 0, int(1.02 * gpus * times.capacity / FPS) + 1
    while high - low > max(1, high // 50):
        middle = (low + 3 * high) // 4 if low == 0 else (low + high) // 2
        run = Run(times, gpus, middle, policy, bursts=False).go()
        low, high = (middle, high) if run.serves() else (low, middle)
    return low


def curves(times: Times, gpus: tuple[int, ...], sessions: tuple[int, ...]) -> list[dict[str, Any]]:
    """All runs; of those that are far beyond what fits, only the first."""
    rows = []
    for bursts, count, policy in itertools.product((False, True), gpus, POLICIES):
        for n in sessions:
            row = Run(times, count, n, policy, bursts=bursts).go().row()
            rows.append({"bursts": bursts, "gpus": count, "policy": policy, "sessions": n, **row})
            print(json.dumps(rows[-1]))
            if n * FPS > 1.5 * count * times.capacity:
                break
    return rows


# ---------------------------------------------------------------- pictures
def draw(found: dict[str, Any], path: Path) -> None:
    """Throughput, p99 and lateness against sessions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 2, figsize=(13, 11), sharex=True, sharey="row")
    measures = (
        ("frames_per_s", "frames/s in time", 1.0),
        ("p99_ms", "p99, last needed sample\nto ring, ms", 1.0),
        ("late", "frames late, %", 100.0),
    )
    for column, bursts in enumerate((False, True)):
        for (name, label, factor), axis in zip(measures, axes[:, column], strict=True):
            for color, gpus in enumerate(dict.fromkeys(row["gpus"] for row in found["rows"])):
                for policy, style in zip(POLICIES, ("-", ":"), strict=True):
                    rows = [
                        row
                        for row in found["rows"]
                        if (row["bursts"], row["gpus"], row["policy"]) == (bursts, gpus, policy)
                    ]
                    axis.plot(
                        [row["sessions"] for row in rows],
                        [factor * row[name] for row in rows],
                        style,
                        c=f"C{color}",
                        lw=1.6 if policy == "ours" else 2.4,
                        label=f"{gpus} GPU{'s' * (gpus > 1)}, {POLICIES[policy]}",
                    )
                axis.axvline(found["admitted"][str(gpus)], c=f"C{color}", lw=0.7, alpha=0.6)
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.grid(alpha=0.25)
            if column == 0:
                axis.set_ylabel(label)
    axes[0, 0].set_title("all live")
    axes[0, 1].set_title("one of ten asks for two seconds at once")
    axes[0, 0].set_yscale("log")
    axes[0, 0].yaxis.set_major_formatter("{x:,.0f}")
    axes[1, 0].set_ylim(0, 70)
    axes[1, 0].axhline(1e3 * P99_GOAL_S, c="0.3", lw=0.8, ls="--")
    axes[1, 1].axhline(1e3 * P99_GOAL_S, c="0.3", lw=0.8, ls="--")
    axes[2, 0].set_ylim(0, 40)
    for axis in axes[2]:
        axis.set_xlabel("sessions that speak, 25 frames/s each")
    axes[0, 0].legend(fontsize=8, loc="upper left")
    kind = "PREDICTED" if found["kind"] == "predicted" else "measured"
    figure.suptitle(
        f"Simulation from {kind} service times, not a measurement: {found['device']} each, "
        f"{found['network']}\nthin vertical lines: as many may speak as the server would admit; "
        "dashed: the goal of 40 ms"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Run, draw, write."""
    args = program.options(
        __doc__, times=HERE / "predicted.json", out=HERE, quick=False, draw=False
    )
    written, picture = args.out / "simulate.json", args.out / "simulate.png"
    if args.draw:
        draw(json.loads(written.read_text()), picture)
        return
    read = json.loads(args.times.read_text())
    sets = {name: Times.of(found) for name, found in read["times"].items()}
    first = "expected" if "expected" in sets else next(iter(sets))
    times = sets[first]
    gpus, sessions = ((1, 2), (10, 100)) if args.quick else (GPUS, SESSIONS)
    found = {
        "what": f"a simulation from {read['kind']} service times, not a measurement",
        "kind": read["kind"],
        "device": read["device"],
        "network": read["network"],
        "set": first,
        "times": read["times"],
        "in_time_ms": 1e3 * IN_TIME_S,
        "capacity": {name: round(each.capacity, 1) for name, each in sets.items()},
        "admitted": {str(n): int(HEADROOM * n * times.capacity / FPS) for n in gpus},
        "most": [
            {
                "set": name,
                "gpus": n,
                **{policy: most_sessions(sets[name], n, policy) for policy in POLICIES},
            }
            for name in sets
            for n in (gpus if name == first else (gpus[0], gpus[-1]))
        ],
        "rows": curves(times, gpus, sessions),
    }
    program.keep(written, **found)
    draw(found, picture)
    for row in found["most"]:
        print(row)


if __name__ == "__main__":
    main()
