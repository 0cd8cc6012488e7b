# SPDX-License-Identifier: Apache-2.0
"""How well audio encoders hear the mouth: by themselves, on voices that no training step has seen.

    python evaluate_hearing.py WORK --voices FOLDER [--hearing FILE] [--shipped] [--seen FILE]
                               [--groups NAME ...] [--disturbed NAME ...] [--out FOLDER]

No picture is made: what an encoder hears, the controls of each frame, is put onto the head's exact
lips (lips.py), and their opening is compared with what the aligned phones ask for. ``--voices`` has
NAME.wav and NAME.npz (phones, times, speech, valid) of speakers who are only measured by;
readers.py's judged readers and corpus.py's test recordings come beside them. ``--hearing`` is what
train_voices.py has written (WORK/out/hearing.pt when nothing else is named), ``--shipped`` the
encoder and audio branch that restore.py took out of a package, ``--seen`` what can be seen in the
pictures of one (seen.py). Writes hearing.json and hearing.md to FOLDER (WORK/evaluation); what a
former run measured stays in them.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import wave
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from evaluate import ROTATIONS, best_lag, closed_share, correlation, rotated, share
from hearing_report import GROUPS, written
from lips import UNIT, LipNet, fitted
from mouth_measure import CLOSED_PX, SEALED_PX
from numpy.typing import NDArray
from seen import Seen

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "speech"))
import disturb
from hearing import EARLIER, LOOKAHEAD_MS, Calibration, Listener
from phones import CLOSURES, FPS, Phone, controls_of, voiced_gate
from shipped import Shipped
from voices import Voice, load

from lipsync_fast.audio.gain import levelled

F32 = NDArray[np.float32]
RATE = 16_000
SHORTEST_S = 1.5
CLOSING = ((0.1, 0.3), (0.15, 0.4), (0.2, 0.5), (0.25, 0.55), (0.3, 0.7), (0.4, 0.8))
"""Probabilities tried: where a closure begins, and where it is complete."""
PAUSE_S = 0.12
"""A pause's frames are so far away from any phone."""


class Hearer(Protocol):
    """Something that hears the mouth in a recording."""

    lookahead_ms: float

    def tell(self, pcm: F32) -> F32:
        """Controls of every frame, frames x 8, 0..1, or frames x 10: with both gaps in UNIT."""


@dataclass(frozen=True)
class Recording:
    """Speech with known phones: what is expected of its frames, closures in seconds.

    ``expected`` is the opening in pixels; ``speech`` and ``pause`` mark frames within phones and
    far from any; ``valid`` those whose phones can be believed.
    """

    name: str
    speaker: str
    pcm: F32
    expected: F32
    speech: NDArray[np.bool_]
    pause: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    closures: list[tuple[str, float, float]]


class Played(NamedTuple):
    """A recording and the gaps (frames x 2, pixels) that somebody hears in it."""

    recording: Recording
    gaps: F32


Disturbance = Callable[[F32, Sequence[F32], np.random.RandomState], F32]

DISTURBED: dict[str, Disturbance] = {
    "-20 dB": lambda x, _, __: (x * 0.1).astype(np.float32),
    "-40 dB": lambda x, _, __: (x * 0.01).astype(np.float32),
    "-40 dB, levelled": lambda x, _, __: levelled((x * 0.01).astype(np.float32)),
    "babble 20 dB": lambda x, others, rng: disturb.mixed(
        x, disturb.babble(others, len(x) / RATE, rng), 20
    ),
    "babble 10 dB": lambda x, others, rng: disturb.mixed(
        x, disturb.babble(others, len(x) / RATE, rng), 10
    ),
    "music 15 dB": lambda x, _, rng: disturb.mixed(x, disturb.music(len(x) / RATE, rng), 15),
    "hiss 20 dB": lambda x, _, rng: disturb.mixed(x, disturb.hiss(len(x) / RATE, rng), 20),
    "room 0.5 s": lambda x, _, rng: disturb.in_room(x, 0.5, 3, rng),
    "room 1.0 s": lambda x, _, rng: disturb.in_room(x, 1.0, 0, rng),
    "telephone": lambda x, _, __: disturb.telephone(x),
}
"""What is done to the measured voices; each with the same random numbers for everybody."""


# ---------------------------------------------------------------- recordings
def recording_of(
    name: str, speaker: str, pcm: F32, phones: list[Phone], valid: NDArray[np.bool_], lips: LipNet
) -> Recording:
    """A recording and what its phones ask for."""
    seconds = len(pcm) / RATE
    controls = controls_of(phones, seconds)
    controls *= voiced_gate(pcm, len(controls))[:, None]
    middles = (np.arange(len(controls)) + 0.5) / FPS
    speech, near = np.zeros(len(middles), bool), np.zeros(len(middles), bool)
    for phone in phones:
        if phone.name != "SIL":
            speech |= (middles >= phone.start) & (middles < phone.end)
            near |= (middles >= phone.start - PAUSE_S) & (middles < phone.end + PAUSE_S)
    shut = [tuple(p) for p in phones if p.name in CLOSURES and valid[_frame(p, len(valid))]]
    gaps = lips.pixels(controls)[:, 0]
    return Recording(name, speaker, pcm, gaps, speech, ~near, valid, shut)


def _frame(phone: Phone, count: int) -> int:
    return min(count - 1, int((phone.start + phone.end) / 2 * FPS))


def measured(folder: pathlib.Path, lips: LipNet) -> list[Recording]:
    """The speakers of a folder of WAV files and their phones."""
    out = []
    for path in sorted(folder.glob("*.wav")):
        with wave.open(str(path)) as sound:
            if sound.getframerate() != RATE or sound.getnchannels() != 1:
                raise SystemExit(f"{path}: expected 16 kHz, mono")
            data = sound.readframes(sound.getnframes())
        pcm = np.frombuffer(data, "<i2").astype(np.float32) / 32768
        with np.load(path.with_suffix(".npz")) as z:
            names, times, valid = z["phones"], z["times"], z["valid"]
        phones = [Phone(str(n), float(s), float(e)) for n, (s, e) in zip(names, times, strict=True)]
        out.append(recording_of(path.stem, path.stem, pcm, phones, valid, lips))
    return out


def of_voice(voice: Voice, lips: LipNet) -> Recording:
    """A recording of the corpus."""
    count = -(-len(voice.pcm) // (RATE // FPS))
    moments = (np.arange(count) + 0.5) / FPS
    valid = voice.at(moments)[2] > 0
    return recording_of(voice.name, voice.speaker, voice.sound, voice.phones, valid, lips)


# ---------------------------------------------------------------- figures
def gaps_heard(hearer: Hearer, pcm: F32, lips: LipNet) -> F32:
    """What somebody hears as both gaps in pixels, frames x 2."""
    told = hearer.tell(pcm)
    return told[:, 8:] * UNIT if told.shape[1] > 8 else lips.pixels(told)


def play(hearer: Hearer, recordings: list[Recording], lips: LipNet) -> list[Played]:
    """What somebody hears in recordings."""
    return [Played(r, gaps_heard(hearer, r.pcm, lips)) for r in recordings]


def speaker_figures(played: list[Played]) -> dict[str, Any]:
    """Everything about one speaker, or several as one."""
    seen = np.concatenate([p.gaps[p.recording.valid, 0] for p in played])
    wanted = np.concatenate([p.recording.expected[p.recording.valid] for p in played])
    pause = np.concatenate([p.gaps[p.recording.pause & p.recording.valid, 0] for p in played])
    lag, _ = best_lag([(p.gaps[:, 0], p.recording.expected) for p in played])
    counts = {}
    for name, axis, limit in (("closed", 0, CLOSED_PX), ("sealed", 1, SEALED_PX)):
        by_phone = closed_share([(p.gaps[:, axis], p.recording) for p in played], limit)
        counts[name] = [sum(c) for c in zip(*by_phone.values(), strict=True)] or [0, 0]
    return {
        "seconds": sum(len(p.recording.pcm) for p in played) / RATE,
        "r": correlation(seen, wanted),
        "lag_frames": lag,
        **counts,
        "open_in_pauses": float((pause > CLOSED_PX).mean()) if len(pause) else None,
        "p95_px": float(np.quantile(seen, 0.95)),
        "p95_expected_px": float(np.quantile(wanted, 0.95)),
    }


def group_figures(played: list[Played]) -> dict[str, Any]:
    """A group of speakers: each, their mean, pooled, and what chance gives."""
    speakers = sorted({p.recording.speaker for p in played})
    each = {s: speaker_figures([p for p in played if p.recording.speaker == s]) for s in speakers}
    pooled = speaker_figures(played)
    gaps = [p.gaps[:, 1] for p in played]
    chance = [
        share(
            closed_share(
                [(g, p.recording) for g, p in zip(rotated(gaps, by), played, strict=True)],
                SEALED_PX,
            )
        )
        for by in ROTATIONS
        if by < len(played)
    ]
    return {
        "mean_r": float(np.mean([e["r"] for e in each.values()])),
        "sealed_share": pooled["sealed"][0] / max(1, pooled["sealed"][1]),
        "sealed_by_chance": float(np.mean(chance)) if chance else None,
        "pooled": pooled,
        "speakers": each,
    }


def disturbed_figures(
    hearer: Hearer,
    clean: list[Played],
    others: Sequence[F32],
    lips: LipNet,
    names: Collection[str],
) -> dict[str, dict[str, float | None]]:
    """Each disturbance: r to the same speaker's clean gaps, r to the expected ones, and pauses."""
    out = {}
    for number, (name, change) in enumerate(DISTURBED.items()):
        if name not in names:
            continue
        to_clean, to_expected, pauses = [], [], []
        for k, (recording, before) in enumerate(clean):
            rng = np.random.RandomState(1000 * number + k)
            some = [others[i] for i in rng.choice(len(others), 6, replace=False)]
            changed = np.clip(change(recording.pcm, some, rng), -1, 1).astype(np.float32)
            gaps = gaps_heard(hearer, changed, lips)
            use = recording.valid
            to_clean.append(correlation(gaps[:, 0], before[:, 0]))
            to_expected.append(correlation(gaps[use, 0], recording.expected[use]))
            pauses.append(gaps[recording.pause, 0] > CLOSED_PX)
        some_pauses = np.concatenate(pauses)
        out[name] = {
            "r_to_clean": float(np.mean(to_clean)),
            "r": float(np.mean(to_expected)),
            "open_in_pauses": float(some_pauses.mean()) if len(some_pauses) else None,
        }
        print(f"{name}: {out[name]}", flush=True)
    return out


def calibration_for(listener: Listener, voices: list[Voice], lips: LipNet) -> Calibration:
    """How far to take what is told, and where to call a closure one: by the validation readers.

    Of a few ways the one with the best mean r, plus half of the part of p, b, m that are sealed.
    """
    recordings = [of_voice(v, lips) for v in voices]
    raw = [listener.raw(r.pcm) for r in recordings]
    told, true = np.concatenate(raw), np.concatenate([v.frames() for v in voices])
    best, found = -np.inf, Calibration()
    for low, high in CLOSING:
        tried = Calibration.of(told, true, low, high)
        pairs = zip(recordings, raw, strict=True)
        figures = group_figures([Played(r, lips.pixels(tried(x))) for r, x in pairs])
        value = figures["mean_r"] + 0.5 * figures["sealed_share"]
        about = f"r {figures['mean_r']:.3f} sealed {figures['sealed_share']:.2f}"
        print(f"closures from {low} to {high}: {about}", flush=True)
        if value > best:
            best, found = value, tried
    return found


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--voices", type=pathlib.Path, required=True)
    parser.add_argument("--hearing", type=pathlib.Path)
    parser.add_argument("--shipped", action="store_true")
    parser.add_argument("--seen", type=pathlib.Path, metavar="FILE", help="a package")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--disturbed", nargs="*", choices=DISTURBED, default=list(DISTURBED))
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    everything = load(args.work, share_alike=True)
    lips = fitted(args.work, np.concatenate([v.frames() for v in everything]))
    judged = [v for v in everything if v.split == "test" and v.origin == "reader"]
    own = [
        v for v in everything if (v.split, v.origin) == ("test", "real") and v.seconds >= SHORTEST_S
    ]
    groups = {
        "measured": measured(args.voices, lips),
        "judged": [of_voice(v, lips) for v in judged],
        "own": [of_voice(v, lips) for v in own],
    }
    groups = {name: some for name, some in groups.items() if name in args.groups}
    others = [v.sound for v in judged]
    checkpoint = args.hearing or args.work / "out" / "hearing.pt"
    hearers: dict[str, Hearer] = {}
    if args.shipped:
        hearers["shipped"] = Shipped(args.work, lips, [v for v in everything if v.origin == "real"])
    if args.seen is not None:
        hearers["seen"] = Seen(args.work, args.seen)
    if args.hearing is not None or not hearers:
        held = [v for v in everything if (v.split, v.origin) == ("val", "reader")]
        calibration = calibration_for(Listener(checkpoint), held, lips)
        for head in range(len(EARLIER)):
            listener = Listener(checkpoint, head, calibration)
            hearers[f"{checkpoint.stem}, {listener.lookahead_ms:g} ms"] = listener
    out = args.out or args.work / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "hearing.json"
    report: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for name, hearer in hearers.items():
        print(f"== {name}", flush=True)
        played = {group: play(hearer, some, lips) for group, some in groups.items()}
        found: dict[str, Any] = {g: group_figures(p) for g, p in played.items() if p}
        for group, figures in found.items():
            print(f"{group}: r {figures['mean_r']:.3f} sealed {figures['sealed_share']:.2f}")
        if args.disturbed and "measured" in played and hearer.lookahead_ms == LOOKAHEAD_MS[0]:
            found["disturbed"] = disturbed_figures(
                hearer, played["measured"], others, lips, args.disturbed
            )
        if isinstance(hearer, Listener):
            found["calibration"] = asdict(hearer.calibration)
        report[name] = {"lookahead_ms": hearer.lookahead_ms, **found}
    kept.write_text(json.dumps(report, indent=1) + "\n")
    (out / "hearing.md").write_text(written(report))
    print(f"{out / 'hearing.md'}")


if __name__ == "__main__":
    main()
