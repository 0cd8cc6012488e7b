# SPDX-License-Identifier: Apache-2.0
"""The benchmark: what is measured, in which order, and what is written of it.

    peers      the reference's network at full size: three ways of working and ours, in turn
    demo       the demo avatar: sessions, content, quality, width
    live       sessions in real time, from one to more than are admitted
    profile    where a frame's time goes, hop by hop
    engines    threads and engine processes
    avatars    from one avatar to many, in turn
    clips      from short sounds to long ones

Each round measures every variant once, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lipsync_fast.benchmark.burst import Look
from lipsync_fast.benchmark.measure import idle, live, server, throughput, timed
from lipsync_fast.benchmark.processes import machine
from lipsync_fast.benchmark.rows import Report, Row, Spread, by_name, ratios
from lipsync_fast.benchmark.speech import shipped_recording
from lipsync_fast.benchmark.sweeps import one_sound, rounds_in_turn
from lipsync_fast.version import __version__

PARTS = ("peers", "demo", "live", "profile", "engines", "avatars", "clips")
QUICK = ("peers", "demo", "live", "profile")
OURS = "lipsync-fast"
IDLE = "4 sessions, nobody speaks"
PROFILE = "2 in real time, traced"
SHORT_S = 4.0
"""Seconds of the recording that are said in bursts."""
VISIT_S = 1.0
"""Seconds of the recording that are said where avatars take turns."""
FEW_FRAMES = 1000
"""A longer sound is said once, not once a round."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: of each comparison.
        seconds: of each throughput measurement; live_s: of each live one.
        peer_frames: that each peer makes in a round; those that are not named are left out.
        sessions: how many at a time, in bursts.
        live_sessions: how many speak in real time; by what the server admits where empty.
        avatars: how many take turns.
        clips: frames of a sound.
    """

    parts: tuple[str, ...]
    rounds: int
    seconds: float
    live_s: float
    peer_frames: dict[str, int]
    sessions: tuple[int, ...]
    live_sessions: tuple[int, ...]
    avatars: tuple[int, ...]
    clips: tuple[int, ...]
    threads: int
    gpus: str = "all"

    @classmethod
    def quick(cls, threads: int) -> Plan:
        """Under three minutes on two cores."""
        frames = {"a": 3, "b": 6, "c": 8}
        return cls(QUICK, 3, 4.0, 8.0, frames, (1, 2), (1, 2, 4), (1, 5), (10, 100), threads)

    @classmethod
    def full(cls, threads: int) -> Plan:
        """All of it: some twenty minutes on two cores."""
        frames = {"a": 6, "b": 16, "c": 24}
        avatars, clips = (1, 5, 20, 50), (10, 100, 1000, 10_000)
        sessions = (1, 2, 4, 8)
        return cls(PARTS, 5, 10.0, 20.0, frames, sessions, (), avatars, clips, threads)


class Progress:
    """Says what is being measured, and how much is left."""

    def __init__(self, total: int, tell: Callable[[str], None]) -> None:
        self._total, self._done, self._tell = total, 0, tell
        self._begun = time.monotonic()

    def step(self, what: str) -> None:
        """Something begins."""
        width = 24
        filled = width * self._done // max(1, self._total)
        bar = "#" * filled + "." * (width - filled)
        self._tell(f"[{bar}] {time.monotonic() - self._begun:5.0f} s  {what}")
        self._done += 1


def run(plan: Plan, tell: Callable[[str], None] = print) -> Report:
    """Measure all that a plan names.

    Returns:
        The report; rows that are wrong say so.
    """
    begun = time.monotonic()
    report = Report(
        command=shlex.join(["lipsync-fast", *sys.argv[1:]]),
        version=__version__,
        commit=commit(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=machine(),
    )
    progress = Progress(_steps(plan), tell)
    made: dict[str, Callable[[Plan, Progress, Report], Iterator[Row]]] = {
        "peers": _peers,
        "demo": _demo,
        "live": _live,
        "profile": _profile,
        "engines": _engines,
        "avatars": _avatars,
        "clips": _clips,
    }
    for part in plan.parts:
        for row in made[part](plan, progress, report):
            report.rows.append(row)
            if not row.is_right:
                tell(f"    WRONG: {row.name}: {row.different} different, {row.wrong[:3]}")
    report.wall_s = round(time.monotonic() - begun, 1)
    report.sentence = sentence(report)
    return report


def _steps(plan: Plan) -> int:
    each = {
        "peers": 1 + (len(plan.peer_frames) + 1) * plan.rounds,
        "demo": len(plan.sessions) + len(LOOKS),
        "live": len(plan.live_sessions or offered(3)) + 1,
        "profile": 1,
        "engines": len(ENGINES) * plan.rounds,
        "avatars": len(plan.avatars) * plan.rounds,
        "clips": sum(_times(plan, frames) for frames in plan.clips),
    }
    return sum(each[part] for part in plan.parts)


def _times(plan: Plan, frames: int) -> int:
    return plan.rounds if frames <= FEW_FRAMES else 1


ENGINES: dict[str, dict[str, int]] = {
    "1 engine of 1 thread": {"per_gpu": 1, "threads": 1},
    "1 engine of 2 threads": {"per_gpu": 1, "threads": 2},
    "2 engines of 1 thread": {"per_gpu": 2, "threads": 1},
}
LOOKS = {
    "mouth alone": Look(content="mouth"),
    "quality 60": Look(quality=60),
    "640 wide": Look(max_width=640),
}


def _sections(plan: Plan, **engines: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"spares": 0, "threads": plan.threads, "gpus": plan.gpus} | engines
    return {"engines": chosen, "live": {"speakers": 1000}}


# ---------------------------------------------------------------- peers
def _peers(plan: Plan, progress: Progress, report: Report) -> Iterator[Row]:
    """The reference's network: each way of working in turn, round after round."""
    try:
        import torch
    except ImportError:
        report.not_measured.append("peers: torch is not installed (extra: train)")
        return
    from lipsync_fast.avatars.package import AvatarPackage
    from lipsync_fast.benchmark.peers import (
        BatchedOnnxPeer,
        OnnxPeer,
        Peer,
        Scene,
        TorchPeer,
        jpegs,
    )
    from lipsync_fast.benchmark.reference import (
        Networks,
        reference_networks,
        write_reference_avatar,
    )

    progress.step("making an avatar with the reference's network at full size")
    if plan.threads:
        torch.set_num_threads(plan.threads)
    networks = reference_networks()
    pcm = shipped_recording(SHORT_S)
    sound = (pcm / np.float32(32768)).astype(np.float32)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lipsync-bench-")))
        write_reference_avatar(folder / "reference", networks)
        package = stack.enter_context(AvatarPackage.open(folder / "reference"))
        scene = Scene(package, sound)
        ways: dict[str, Callable[[Scene, Networks], Peer]] = {
            "a": TorchPeer,
            "b": OnnxPeer,
            "c": BatchedOnnxPeer,
        }
        peers = {key: ways[key](scene, networks) for key in plan.peer_frames}
        own = {"folders": [str(folder)], "default": "reference"}
        running = stack.enter_context(server(**_sections(plan), avatars=own))
        wrong = _same_pictures(folder / "reference", sound, list(peers.values()))
        for round_ in range(plan.rounds):
            for key, peer in peers.items():
                progress.step(f"round {round_ + 1}: {peer.name}")
                first = 20 + round_ * plan.peer_frames[key]
                numbers = list(range(first, first + plan.peer_frames[key]))
                row = timed(
                    peer.name,
                    round_,
                    [k % 90 for k in numbers],
                    lambda some, peer=peer: sum(  # type: ignore[misc]
                        len(jpeg) for jpeg in jpegs(peer, scene, some)
                    ),
                )
                row.wrong = wrong.get(peer.name, [])
                yield row
            progress.step(f"round {round_ + 1}: {OURS}")
            mine = {"reference": str(folder / "reference")}
            row = throughput(running, OURS, pcm, plan.seconds, sessions=2, avatars=mine)
            row.kind, row.round = "ours", round_
            yield row


def _same_pictures(
    path: Path, sound: NDArray[np.float32], peers: list[Any], frames: int = 4
) -> dict[str, list[str]]:
    """Whether peers make the pictures that ours makes; what differs by more than two levels."""
    import lipsync_fast

    wrong: dict[str, list[str]] = {}
    with lipsync_fast.open(path, backend="cpu") as avatar:
        ours = []
        with avatar.render(sound, 16_000) as rendering:
            for frame in rendering:
                ours.append(frame.image.astype(np.int16))
                if len(ours) == frames:
                    break
    for peer in peers:
        for k, picture in enumerate(peer.pictures(list(range(frames)))):
            most = int(np.abs(picture.astype(np.int16) - ours[k]).max())
            if most > 2:
                wrong.setdefault(peer.name, []).append(f"frame {k} differs by {most} grey levels")
    return wrong


# ---------------------------------------------------------------- ours
def _demo(plan: Plan, progress: Progress, report: Report) -> Iterator[Row]:
    """The demo avatar as fast as it comes."""
    pcm = shipped_recording(SHORT_S)
    with server(**_sections(plan)) as running:
        for sessions in plan.sessions:
            progress.step(f"demo avatar, {sessions} sessions")
            name = f"demo avatar, {sessions} session" + ("s" if sessions > 1 else "")
            yield throughput(running, name, pcm, plan.seconds, sessions=sessions)
        for name, look in LOOKS.items():
            progress.step(f"demo avatar, {name}")
            yield throughput(
                running, f"demo avatar, {name}", pcm, plan.seconds, sessions=2, look=look
            )


def offered(admitted: int) -> tuple[int, ...]:
    """Sessions to try: up to as many as may speak, one more, twice and ten times as many."""
    fewer = {1 << k for k in range(admitted.bit_length()) if 1 << k < admitted}
    return tuple(sorted(fewer | {admitted, admitted + 1, 2 * admitted, 10 * admitted}))


def _live(plan: Plan, progress: Progress, report: Report) -> Iterator[Row]:
    """Speakers in real time; the server admits what it can."""
    pcm = shipped_recording(min(SHORT_S, plan.live_s / 2))
    sections = _sections(plan) | {"live": {}}
    with server(**sections) as running:
        for sessions in plan.live_sessions or offered(running.status().speakers):
            progress.step(f"{sessions} speak in real time")
            name = f"{sessions} in real time"
            yield live(running, name, pcm, plan.live_s, sessions=sessions)
        progress.step("nobody speaks")
        yield idle(running, IDLE, plan.live_s, sessions=4)


def _profile(plan: Plan, progress: Progress, report: Report) -> Iterator[Row]:
    """Two speakers in real time, each of their frames traced."""
    pcm = shipped_recording(min(SHORT_S, plan.live_s / 2))
    with tempfile.TemporaryDirectory(prefix="lipsync-bench-") as folder:
        trace = Path(folder) / "trace"
        sections = _sections(plan) | {"log": {"level": "error", "trace": str(trace)}}
        with server(**sections) as running:
            progress.step("where a frame's time goes")
            yield live(running, PROFILE, pcm, plan.live_s, sessions=2, trace=trace)


def _engines(plan: Plan, progress: Progress, report: Report) -> Iterator[Row]:
    """Processors used as threads of one engine, and as engines."""
    pcm = shipped_recording(SHORT_S)
    with ExitStack() as stack:
        variants = {
            name: stack.enter_context(server(**_sections(plan, **engines)))
            for name, engines in ENGINES.items()
        }
        for round_ in range(plan.rounds):
            for name, running in variants.items():
                progress.step(f"round {round_ + 1}: {name}")
                row = throughput(running, name, pcm, plan.seconds, sessions=4)
                row.kind, row.round = "sweep", round_
                row.settings |= ENGINES[name]
                yield row


def _avatars(plan: Plan, progress: Progress, report: Report) -> Iterator[Row]:
    """Clients that come, speak once, and go: of one avatar, and of more and more in turn."""
    import shutil

    from lipsync_fast.avatars.library import AvatarLibrary

    pcm = shipped_recording(VISIT_S)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lipsync-bench-")))
        names = [f"copy{k}" for k in range(max(plan.avatars))]
        demo = AvatarLibrary().find("demo")
        for name in names:
            shutil.copy(demo, folder / f"{name}.lsa")
        running = stack.enter_context(
            server(**_sections(plan), avatars={"folders": [str(folder)], "default": "copy0"})
        )
        paths = {name: str(folder / f"{name}.lsa") for name in names}
        yield from rounds_in_turn(
            running, pcm, plan.seconds, plan.rounds, paths, plan.avatars, progress.step
        )


def _clips(plan: Plan, progress: Progress, report: Report) -> Iterator[Row]:
    """One sound at a time, of more and more frames."""
    pcm = shipped_recording()
    with server(**_sections(plan)) as running:
        for frames in sorted(plan.clips):
            for round_ in range(_times(plan, frames)):
                progress.step(f"round {round_ + 1}: a sound of {frames} frames")
                row = one_sound(running, f"a sound of {frames} frames", pcm, frames)
                row.round = round_
                yield row


# ---------------------------------------------------------------- what it comes to
def sentence(report: Report) -> str:
    """The result in one sentence."""
    parts = []
    whole = [r.frames_per_s for r in report.rows if r.kind == "throughput" and "session" in r.name]
    if whole:
        parts.append(f"{max(whole):.0f} frames/s of the demo avatar end to end")
    for kind, name in by_name(report.rows):
        if kind == "peer":
            found = ratios(report.rows, name)
            if found:
                parts.append(f"{Spread.of(found).median:.1f}x {name}")
    admitted = [
        r for r in report.rows if r.kind == "live" and r.expected and not r.refused and not r.late
    ]
    if admitted:
        most = max(int(r.settings["sessions"]) for r in admitted)
        parts.append(f"{most} live sessions with no frame late")
    wrong = sum(not row.is_right for row in report.rows)
    served = [r for r in report.rows if r.kind in ("throughput", "live")]
    right = "every sampled frame right"
    if wrong:
        right = f"{wrong} MEASUREMENTS WRONG"
    elif served and not any(row.compared for row in served):
        right = "no frame was compared"
    cores = report.machine.get("cores")
    return f"On {cores} cores of {report.machine.get('processor')}: " + "; ".join([*parts, right])


def commit() -> str:
    """The checkout's commit, where this is one."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent,
            timeout=5,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def read(path: Path) -> Report:
    """A report from its file.

    Raises:
        msgspec.MsgspecError: it is none.
        OSError: it cannot be read.
    """
    return msgspec.json.decode(path.read_bytes(), type=Report)
