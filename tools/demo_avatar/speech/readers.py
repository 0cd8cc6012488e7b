# SPDX-License-Identifier: Apache-2.0
"""Speech of many readers, transcribed and aligned: the corpus of voices.

    python readers.py WORK --recordings FOLDER --whisper FOLDER [--threads 1]

``--recordings`` is audio_data of the repository resemble-ai/Resemblyzer: one recording each of
251 readers of LibriSpeech's train-clean-100 and ten each of ten readers of its test-other, of
which three are used (CC BY 4.0). ``--whisper`` is a folder with Whisper-base's CTranslate2 files
(see README.md). Whoever is measured by is never trained on: the readers of MEASURED are left out
altogether; the other six of test-other and six of train-clean-100 are kept for judging.

Writes WORK/speech/voices/NAME.npz (pcm int16 at 16 kHz, controls T x 8, valid T, phone_names,
phone_times, word_texts, word_times) and index.json. A recording that is there already is not done
again; the same input gives the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
from collections.abc import Iterator

import av
import numpy as np
import soxr
from aligning import Aligned, Aligner, Word, Writer
from corpus import RATE
from numpy.typing import NDArray
from phones import controls_of, voiced_gate

MEASURED = frozenset(("367", "1688", "2033", "3331"))
"""Readers whom the published figures are about."""
JUDGING, VALIDATION = 6, 10
"""Readers of train-clean-100 beside those of test-other that are kept for judging, and such that
decisions about training are made by."""
RECORDINGS = 3
"""Most recordings of one reader."""
LICENCE = "CC BY 4.0"

Entry = dict[str, str | float]


def splits(folder: pathlib.Path) -> dict[str, str]:
    """Which split each reader is in, by number; seeded."""
    clean = sorted(
        {p.name.split("-")[0] for p in folder.glob("librispeech_train*/*.flac")}, key=int
    )
    other = sorted(p.name for p in folder.glob("librispeech_test-other/*") if p.is_dir())
    out = {reader: "test" for reader in other if reader not in MEASURED}
    chosen = random.Random(11).sample([r for r in clean if r not in MEASURED], JUDGING + VALIDATION)
    for k, reader in enumerate(chosen):
        out[reader] = "test" if k < JUDGING else "val"
    for reader in clean:
        if reader not in MEASURED:
            out.setdefault(reader, "train")
    return out


def recordings(folder: pathlib.Path) -> list[pathlib.Path]:
    """The first RECORDINGS files of every reader."""
    paths = [*folder.glob("librispeech_train*/*.flac"), *folder.glob("librispeech_test*/*/*.flac")]
    by_reader: dict[str, list[pathlib.Path]] = {}
    for path in sorted(paths, key=lambda p: p.name):
        by_reader.setdefault(path.name.split("-")[0], []).append(path)
    return [path for some in by_reader.values() for path in some[:RECORDINGS]]


def decoded(path: pathlib.Path) -> NDArray[np.int16]:
    """A recording's sound at 16 kHz, mono."""
    with av.open(f"file:{path}") as container:
        rate = container.streams.audio[0].rate
        pieces = [f.to_ndarray().reshape(-1) for f in container.decode(audio=0)]
    pcm = np.concatenate(pieces)
    if rate == RATE and pcm.dtype == np.int16:
        return pcm
    if pcm.dtype == np.int16:
        pcm = pcm.astype(np.float32) / 32768
    changed = soxr.resample(pcm.astype(np.float32), rate, RATE)
    return np.clip(np.round(changed * 32768), -32768, 32767).astype(np.int16)


def save(
    path: pathlib.Path, pcm: NDArray[np.int16], found: Aligned, words: list[Word] | None = None
) -> None:
    """Write one recording, appearing whole."""
    sound = pcm.astype(np.float32) / 32768
    controls = controls_of(found.phones, len(pcm) / RATE)
    controls *= voiced_gate(sound, len(controls))[:, None]
    partial = path.with_suffix(".part.npz")
    np.savez(
        partial,
        pcm=pcm,
        controls=controls,
        valid=found.valid,
        phone_names=np.array([p.name for p in found.phones]),
        phone_times=np.array([(p.start, p.end) for p in found.phones], np.float32),
        word_texts=np.array([w.text for w in words or ()], str),
        word_times=np.array([(w.start, w.end) for w in words or ()], np.float32).reshape(-1, 2),
    )
    os.replace(partial, path)


def made(
    folder: pathlib.Path, out: pathlib.Path, whisper: pathlib.Path, threads: int
) -> Iterator[Entry]:
    """Transcribe, align and write every recording; what cannot be used is noted and left out."""
    split = splits(folder)
    writer, aligner = Writer(whisper, threads), Aligner()
    for path in recordings(folder):
        reader = path.name.split("-")[0]
        if reader not in split:
            continue
        target = out / f"libri-{path.stem}.npz"
        refused = target.with_suffix(".refused")
        if not target.exists() and not refused.exists():
            pcm = decoded(path)
            words = writer.words(pcm.astype(np.float32) / 32768)
            found = aligner.align(pcm, words)
            if isinstance(found, str):
                refused.write_text(found + "\n")
            else:
                save(target, pcm, found, words)
        if refused.exists():
            print(f"{path.stem}: {refused.read_text().strip()}", flush=True)
            continue
        with np.load(target) as z:
            seconds, valid = len(z["pcm"]) / RATE, float(z["valid"].mean())
        print(f"{path.stem}: {seconds:.1f} s, {valid:.0%} valid", flush=True)
        about: Entry = {"name": target.stem, "split": split[reader], "origin": "reader"}
        yield about | {"speaker": reader, "licence": LICENCE, "seconds": seconds, "valid": valid}


def main() -> None:
    """Make the corpus, or what is missing of it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--recordings", type=pathlib.Path, required=True)
    parser.add_argument("--whisper", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    out = args.work / "speech" / "voices"
    out.mkdir(parents=True, exist_ok=True)
    index = list(made(args.recordings, out, args.whisper, args.threads))
    (out / "index.json").write_text(json.dumps(index, indent=1))
    for split in ("train", "val", "test"):
        some = [e for e in index if e["split"] == split]
        minutes = sum(float(e["seconds"]) for e in some) / 60
        speakers = len({e["speaker"] for e in some})
        print(f"{split:5} {speakers:3} readers, {len(some)} recordings, {minutes:.1f} min")


if __name__ == "__main__":
    main()
