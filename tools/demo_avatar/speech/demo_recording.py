# SPDX-License-Identifier: Apache-2.0
"""The recording that the demo avatar speaks: held-out real speech, with its credit.

    python demo_recording.py WORK

Joins recordings of the test split (no network was trained on them) with natural pauses. Writes
WORK/out/speech.wav (16 kHz, mono, 16 bits) and WORK/out/speech-credits.txt.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import wave

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
NAMES = ("priv-introsaved", "tt-weasels", "vm-pls-try-again")
LEAD_S, PAUSE_S, END_S = 0.35, 0.45, 0.6
FLOOR = 60.0
"""Level of the pauses' noise as a part of 32768: quieter than the recordings' own floor."""
CREDIT = """\
speech.wav joins three of the Asterisk core sounds (English): {names}.
Spoken by Allison Smith (theivrvoice.com). Copyright Digium, Inc. and Allison Smith.
Licence: Creative Commons Attribution-ShareAlike 3.0
(https://creativecommons.org/licenses/by-sa/3.0/); speech.wav stays under the same licence.
Changes: decoded from G.722, trimmed, joined with pauses, and set to one level.
Source: Debian package asterisk-core-sounds-en-g722, https://downloads.asterisk.org/pub/telephony/sounds/
Transcript: "Thank you. Please hold, while I attempt to connect you with your party!
Weasels have eaten our phone system. Please try again."
"""


def trimmed(pcm: NDArray[np.float64]) -> NDArray[np.float64]:
    """The recording from 60 ms before its first sound to 120 ms after its last, ends faded."""
    step = RATE // 100
    level = np.abs(pcm[: len(pcm) // step * step]).reshape(-1, step).max(1)
    heard = np.nonzero(level > 0.02 * level.max())[0]
    out = pcm[max(0, (heard[0] - 6) * step) : (heard[-1] + 12) * step].copy()
    ramp = np.linspace(0, 1, step)
    out[:step] *= ramp
    out[-step:] *= ramp[::-1]
    return out


def joined(pieces: list[NDArray[np.float64]]) -> NDArray[np.int16]:
    """The pieces at one loudness, with pauses of faint noise before, between and after."""
    parts = [np.zeros(int(LEAD_S * RATE))]
    for n, piece in enumerate(pieces):
        loud = np.sqrt(np.mean(piece**2))
        parts.append(piece * min(2600 / loud, 29_000 / np.abs(piece).max()))
        parts.append(np.zeros(int((END_S if n == len(pieces) - 1 else PAUSE_S) * RATE)))
    pcm = np.concatenate(parts)
    noise = np.random.RandomState(3).randn(len(pcm)) * FLOOR / 20
    return np.round(np.clip(pcm + noise, -32768, 32767)).astype(np.int16)


def main() -> None:
    """Write the sound and its credit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    work: pathlib.Path = parser.parse_args().work
    corpus = work / "speech" / "corpus"
    held = {
        e["name"] for e in json.loads((corpus / "index.json").read_text()) if e["split"] == "test"
    }
    missing = [n for n in NAMES if f"real-{n}" not in held]
    if missing:
        raise SystemExit(f"not among the held-out recordings: {', '.join(missing)}")
    pieces = [trimmed(np.load(corpus / f"real-{n}.npz")["pcm"].astype(np.float64)) for n in NAMES]
    pcm = joined(pieces)
    (work / "out").mkdir(exist_ok=True)
    with wave.open(str(work / "out" / "speech.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(pcm.astype("<i2").tobytes())
    (work / "out" / "speech-credits.txt").write_text(CREDIT.format(names=", ".join(NAMES)))
    print(f"speech.wav: {len(pcm) / RATE:.2f} s")


if __name__ == "__main__":
    main()
