# SPDX-License-Identifier: Apache-2.0
"""How much the picture changes from frame to frame: idle, into speech, in it, and back.

    python bench/transition.py [--avatar demo] [--out DIR]

A live session in simulated time, its pictures made by the backend of this machine: nothing is
encoded, no server is needed. The change is the mean absolute difference of two neighbouring frames
in the face rectangle, in grey levels. Writes transition.json and, with matplotlib, transition.png.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.arrays import U8
from lipsync_fast.audio.windows import BlockCache, block_starts
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark import program
from lipsync_fast.cli.demo import demo_recording
from lipsync_fast.engine.backends import Backend, RegionJob, create_backend
from lipsync_fast.engine.backends.base import LoadedAvatar
from lipsync_fast.frontend.playout.live import LivePlayout
from lipsync_fast.frontend.playout.plan import LiveSettings
from lipsync_fast.frontend.playout.playout import Appearance, Flag, Picture
from lipsync_fast.ipc.messages import Answer, Job, Look, Status
from lipsync_fast.media.audio import MediaSource
from lipsync_fast.utterances.transitions import LEAD, LEAD_OUT

MS = 1_000_000
IDLE_S, SPEECH_S = 2.0, 4.0


class Maker:
    """Makes what a session asks for, at once."""

    def __init__(self, backend: Backend, loaded: LoadedAvatar) -> None:
        self._backend, self._loaded = backend, loaded
        self._blocks = BlockCache(lambda mel: backend.features(loaded, mel))

    def make(self, job: Job, pcm: NDArray[np.float32]) -> U8:
        """The whole frame, before it is encoded."""
        speech, window = job.speech, self._loaded.package.manifest.audio
        assert speech is not None
        starts = block_starts(speech.frame, window, speech.samples)
        block = self._blocks.block(speech.stream, starts, pcm, speech.first)
        wanted = RegionJob(self._loaded, job.avatar_frame, block, speech.share)
        return self._backend.submit([wanted], lambda _, image: image)[0].result()


def play(package: AvatarPackage, maker: Maker, pcm: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Idle, speech, idle: for each slot what it is, and how much it differs from the one before."""
    manifest = package.manifest
    streams = itertools.count(1).__next__
    settings = LiveSettings(number=1, new_stream=streams, own_ready=lambda: True)
    session = LivePlayout(settings, Appearance(manifest, manifest.name, Look()), 0)
    made: dict[int, U8] = {}
    rows: list[dict[str, Any]] = []
    before: U8 | None = None
    now, spoken_to = 0, 0
    while now < (2 * IDLE_S + SPEECH_S + 1) * 1e9:
        now += MS
        heard = min(len(pcm), int((now / 1e9 - IDLE_S) * 16_000))
        if heard > spoken_to and now % (20 * MS) == 0:
            session.push_audio(pcm[spoken_to:heard], now)
            spoken_to = heard
            if spoken_to == len(pcm):
                session.end_utterance(now)
        while session.jobs:
            job, samples = session.jobs.popleft()
            made[job.number] = maker.make(job, samples)
            about = Answer(1, job.epoch, job.number, Status.MADE)
            session.answered(about, str(job.number).encode())
        for event in session.tick(now):
            if isinstance(event, Picture):
                own = event.jpeg is None
                image = (
                    package.picture(event.avatar_frame) if own else made.pop(int(event.jpeg or b""))
                )
                rows.append({"slot": event.number, "own": own, "frame": event.frame})
                assert not event.flags & Flag.REPEATED
                x1, y1, x2, y2 = package.rect(event.avatar_frame).corners
                if before is not None:
                    change = np.abs(image.astype(np.int16) - before)[y1:y2, x1:x2]
                    rows[-1]["change"] = float(change.mean())
                before = image
    return rows


def summed_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest and the usual change, of each kind of step."""
    kinds: dict[str, list[float]] = {"idle": [], "in and out": [], "speech": []}
    for last, row in itertools.pairwise(rows):
        both = (last["frame"] is not None) + (row["frame"] is not None)
        own = last["own"] and row["own"]
        kind = "speech" if both == 2 else "idle" if own else "in and out"
        kinds[kind].append(row["change"])
    return {
        name: {"steps": len(v), "median": float(np.median(v)), "most": float(np.max(v))}
        for name, v in kinds.items()
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """The plot, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(11, 4))
    seconds = [row["slot"] / 25 for row in rows[1:]]
    axis.plot(seconds, [row["change"] for row in rows[1:]], lw=1)
    spoken = [row["slot"] / 25 for row in rows if row["frame"] is not None]
    axis.axvspan(spoken[0], spoken[-1], alpha=0.15, label="speech")
    for edge in (spoken[0] - LEAD / 25, spoken[-1] + LEAD_OUT / 25):
        axis.axvline(edge, c="0.6", lw=0.8)
    axis.set_xlabel("seconds")
    axis.set_ylabel("change in the face, grey levels")
    axis.set_ylim(bottom=0)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Play, sum up, write."""
    args = program.options(__doc__, avatar="demo", out=Path("bench/results"))
    pcm = np.concatenate(list(MediaSource(demo_recording())))[: int(16_000 * SPEECH_S)]
    backend = create_backend()
    with AvatarPackage.open(AvatarLibrary().find(args.avatar)) as package:
        rows = play(package, Maker(backend, backend.load(package)), pcm)
        backend.close()
    result = {"avatar": args.avatar, "lead": LEAD, "summary": summed_up(rows), "slots": rows}
    program.write(args.out / "transition.json", result)
    draw(rows, args.out / "transition.png")
    for kind, found in result["summary"].items():
        steps, usual, most = found["steps"], found["median"], found["most"]
        print(f"{kind:>10}: {steps} steps, {usual:.2f} usual, {most:.2f} most")


if __name__ == "__main__":
    main()
