# SPDX-License-Identifier: Apache-2.0
"""Synthetic voices that say when they speak which phone: espeak-ng, flite and festival.

    python synthetic.py WORK [--espeak 320 --flite 160 --festival 90]

They say what the readers of readers.py read, in the training split, and sentences.json's own
sentences. Adds WORK/speech/voices/NAME.npz and synthetic.json. Needs Debian's espeak-ng, flite,
festival, festvox-kallpc16k, festvox-kdlpc16k and festvox-us-slt-hts. What is there already is not
made again.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from aligning import Aligned
from corpus import RATE, SENTENCES, VOICES, Espeak
from numpy.typing import NDArray
from phones import DIPHTHONGS, FPS, TARGETS, Phone
from readers import Entry, decoded, save

FLITE = ("awb", "rms", "slt", "kal16")
FESTIVAL = ("ked_diphone", "kal_diphone", "cmu_us_slt_arctic_hts")
NAMES = {"pau": "SIL", "h#": "SIL", "brth": "SIL", "ax": "AH", "axr": "ER", "dx": "D", "nx": "N"}
"""Phones of the two that are not ARPAbet's."""
SHORTEST, LONGEST = 6, 14
"""Words of a sentence."""

Said = tuple[NDArray[np.int16], list[Phone]]


def texts(folder: pathlib.Path) -> list[str]:
    """What the readers of the training split read, in pieces of some words."""
    out = []
    for entry in json.loads((folder / "index.json").read_text()):
        if entry["split"] != "train":
            continue
        with np.load(folder / f"{entry['name']}.npz") as z:
            words = [str(w) for w in z["word_texts"]]
        rng = random.Random(entry["name"])
        while len(words) >= SHORTEST:
            count = rng.randint(SHORTEST, LONGEST)
            out.append(" ".join(words[:count]))
            words = words[count:]
    return out


def sentence(rng: random.Random, some: list[str]) -> str:
    """What a reader read, or a sentence put together."""
    if rng.random() < 0.75:
        return rng.choice(some)
    parts = ("subjects", "verbs", "objects", "endings")
    return " ".join(rng.choice(SENTENCES[part]) for part in parts)


def phones_of(ends: list[tuple[str, float]]) -> list[Phone] | None:
    """Phones from their names and ends; None where one is unknown."""
    out, start = [], 0.0
    for name, end in ends:
        known = NAMES.get(name, name.upper())
        if known not in TARGETS and known not in DIPHTHONGS:
            return None
        if end > start:
            out.append(Phone(known, start, end))
        start = max(start, end)
    return out


def by_flite(text: str, rng: random.Random) -> Said | None:
    """flite's voices, at several speeds and pitches."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "said.wav"
        stretch = f"duration_stretch={rng.uniform(0.85, 1.25):.3f}"
        command = ["flite", "-voice", rng.choice(FLITE), "--setf", stretch, "-psdur", "-t", text]
        told = subprocess.run([*command, "-o", path], capture_output=True, text=True, check=True)
        pairs = (pair.split(":") for pair in told.stdout.split())
        phones = phones_of([(name, float(end)) for name, end in pairs])
        return (decoded(path), phones) if phones else None


def by_festival(text: str, rng: random.Random) -> Said | None:
    """festival's voices, at several speeds."""
    with tempfile.TemporaryDirectory() as folder:
        wav, segs, program = (pathlib.Path(folder) / n for n in ("said.wav", "segs", "say.scm"))
        program.write_text(
            f"(voice_{rng.choice(FESTIVAL)})\n"
            f"(Parameter.set 'Duration_Stretch {rng.uniform(0.85, 1.25):.3f})\n"
            f'(set! said (Utterance Text "{text}"))\n(utt.synth said)\n'
            f'(utt.save.wave said "{wav}" \'riff)\n(utt.save.segs said "{segs}")\n'
        )
        subprocess.run(["festival", "-b", program], capture_output=True, check=True)
        lines = [line.split() for line in segs.read_text().splitlines() if line.strip() != "#"]
        phones = phones_of([(parts[2], float(parts[0])) for parts in lines])
        return (decoded(wav), phones) if phones else None


def by_espeak(espeak: Espeak) -> Callable[[str, random.Random], Said | None]:
    """espeak-ng's voices, at many speeds and pitches."""

    def say(text: str, rng: random.Random) -> Said | None:
        said = espeak.say(text, rng.choice(VOICES), rng.randint(125, 210), rng.randint(15, 85))
        if said is None:
            return None
        pcm, phones = said
        return np.clip(np.round(pcm * 32768), -32768, 32767).astype(np.int16), phones

    return say


def made(folder: pathlib.Path, counts: dict[str, int]) -> Iterator[Entry]:
    """Say and write everything; every voice's sentences depend on nothing but its number."""
    some = texts(folder)
    engines = {"espeak": by_espeak(Espeak()), "flite": by_flite, "festival": by_festival}
    for engine, say in engines.items():
        for k in range(counts[engine]):
            target = folder / f"{engine}-{k:04d}.npz"
            refused = target.with_suffix(".refused")
            rng = random.Random(f"{engine} {k}")
            text = sentence(rng, some)
            if not target.exists() and not refused.exists():
                said = say(text, rng)
                if said is None:
                    refused.write_text(text + "\n")
                else:
                    frames = int(np.ceil(len(said[0]) / RATE * FPS - 1e-9))
                    save(target, said[0], Aligned(said[1], np.ones(frames, bool)))
            if target.exists():
                with np.load(target) as z:
                    seconds = len(z["pcm"]) / RATE
                about: Entry = {"name": target.stem, "split": "train", "origin": "synthetic"}
                yield about | {"speaker": engine, "licence": "none", "seconds": seconds, "valid": 1}


def main() -> None:
    """Make the synthetic part of the corpus of voices."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--espeak", type=int, default=320)
    parser.add_argument("--flite", type=int, default=160)
    parser.add_argument("--festival", type=int, default=90)
    args = parser.parse_args()
    folder = args.work / "speech" / "voices"
    counts = {"espeak": args.espeak, "flite": args.flite, "festival": args.festival}
    index = list(made(folder, counts))
    (folder / "synthetic.json").write_text(json.dumps(index, indent=1))
    print(f"{len(index)} utterances, {sum(float(e['seconds']) for e in index) / 60:.1f} min")


if __name__ == "__main__":
    main()
