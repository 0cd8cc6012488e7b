# SPDX-License-Identifier: Apache-2.0
"""Speech with known phones: a synthetic corpus (espeak-ng) and a real one (aligned recordings).

    python corpus.py WORK

Needs Debian's espeak-ng and asterisk-core-sounds-en-wav/-g722 (recordings by Allison Smith, CC
BY-SA 3.0, with their transcripts) and PyPI's pocketsphinx for the alignment. Writes
WORK/speech/corpus/NAME.npz (pcm int16 at 16 kHz, phones, controls T x 8) and index.json.
"""

from __future__ import annotations

import argparse
import ctypes
import gzip
import json
import pathlib
import random
import re
import sys
from collections.abc import Iterator

import numpy as np
import soxr
from numpy.typing import NDArray

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from phones import TARGETS, DIPHTHONGS, Phone, controls_of, voiced_gate

RATE = 16_000
SOUNDS = pathlib.Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TRANSCRIPTS = pathlib.Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")

SUBJECTS = "The baker|My brother|A friendly pilot|Our team|The old professor|Everybody|That puppy|The mayor of the village|Sophie|The voice on the phone|A famous painter|Both of them|Whoever wrote this|The gardener|Victor".split("|")
VERBS = "bought|picked up|will move|has probably found|watches|would love to share|improved|simply forgot|is shipping|measured|always brings|gave away|broke|could fix|photographed".split("|")
OBJECTS = "five purple umbrellas|the whole bamboo boat|a cup of very warm coffee|these new maps of the valley|most of the sugar|a beautiful yellow bus|twelve thousand books|the sharpest pencil|an amazing piece of music|their favourite blue vase|a few fresh apples|enough food for everyone|the shiny brown shoes|one million little jewels|some useful advice".split("|")
ENDINGS = "before breakfast.|in the middle of July.|and then went home.|without saying why.|for a better view.|because it was cheap.|on a foggy morning.|right away, of course.|, didn't they?|with both hands.|from the shop above the cafe.|while the weather is good.|as usual.|to show you how.|, which is wonderful!".split("|")
PHRASES = "Hello, and welcome. How may I help you today?|Thank you for calling, we appreciate your patience.|Please hold the line for a moment.|Would you like to make an appointment?|Pumpkin pie, maple syrup, and a bowl of plums.|We have about fifty five rooms available in February.|Good morning! My name is Emma.|Oh, wow, that is a very good question.|Let me check that for you.|Peter Piper picked a peck of pickled peppers.|Why would you move away from the water?|She sells sea shells by the sea shore.|I believe the meeting is at half past seven.|Bob, Mabel and Pam jump on the bumpy boat.|Yes. No. Maybe. Who knows?|Could you repeat the number, please?|You are most welcome, have a lovely evening.|The temperature will be above thirty degrees.|Shall we begin with the first chapter?|Fifty five thousand, four hundred and ninety two.".split("|")

ESPEAK: dict[str, list[str]] = {
    "@": ["AH"], "3": ["ER"], "3:": ["ER"], "@L": ["AH", "L"], "@2": ["AH"], "@5": ["AH"], "a": ["AE"], "aa": ["AE"],
    "a#": ["AH"], "A:": ["AA"], "A@": ["AA", "R"], "A": ["AA"], "E": ["EH"], "e@": ["EH", "R"], "I": ["IH"], "I#": ["IH"],
    "I2": ["IH"], "i": ["IY"], "i:": ["IY"], "i@": ["IY", "AH"], "i@3": ["IY", "R"], "0": ["AA"], "0#": ["AA"], "V": ["AH"], "u:": ["UW"],
    "u": ["UW"], "U": ["UH"], "U@": ["UH", "R"], "O:": ["AO"], "O": ["AO"], "O@": ["AO", "R"], "o@": ["AO", "R"], "O2": ["AO"], "aI": ["AY"],
    "eI": ["EY"], "OI": ["OY"], "aU": ["AW"], "oU": ["OW"], "aI@": ["AY", "AH"], "aI3": ["AY", "R"], "aU@": ["AW", "AH"],
    "p": ["P"], "b": ["B"], "t": ["T"], "d": ["D"], "k": ["K"], "g": ["G"], "f": ["F"], "v": ["V"], "T": ["TH"], "D": ["DH"],
    "s": ["S"], "z": ["Z"], "S": ["SH"], "Z": ["ZH"], "h": ["HH"], "m": ["M"], "n": ["N"], "N": ["NG"], "l": ["L"], "r": ["R"],
    "w": ["W"], "j": ["Y"], "tS": ["CH"], "dZ": ["JH"], "t#": ["D"], "t2": ["T"], "d#": ["D"], "?": ["T"], "L": ["L"], "R": ["R"],
    "m-": ["M"], "n-": ["N"], "l-": ["L"], "r-": ["R"], "z/2": ["Z"], "x": ["HH"], "C": ["HH"],
}  # fmt: skip
"""espeak-ng's English phonemes as ARPAbet; unknown ones make the sentence be left out."""


class Espeak:
    """libespeak-ng with exact phoneme times; not thread-safe, as the library is not."""

    class Event(ctypes.Structure):
        """``espeak_EVENT`` of speak_lib.h."""

        _fields_ = [  # noqa: RUF012
            ("type", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
            ("audio_position", ctypes.c_int), ("sample", ctypes.c_int), ("user_data", ctypes.c_void_p), ("id", ctypes.c_char * 8),
        ]  # fmt: skip

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libespeak-ng.so.1")
        self.rate = self.lib.espeak_Initialize(2, 0, None, 1)  # synchronous, phoneme events
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(self.Event))
        self._callback = kind(self._receive)
        self.lib.espeak_SetSynthCallback(self._callback)
        self._pcm: list[NDArray[np.int16]] = []
        self._events: list[tuple[str, int]] = []

    def _receive(self, wav: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[Event]) -> int:
        if wav and count > 0:
            self._pcm.append(np.ctypeslib.as_array(wav, (count,)).copy())
        i = 0
        while events[i].type != 0:
            if events[i].type == 7:
                self._events.append((events[i].id.decode("latin1"), events[i].sample))
            i += 1
        return 0

    def say(self, text: str, voice: str, speed: int, pitch: int) -> tuple[NDArray[np.float32], list[Phone]] | None:
        """16 kHz sound and phones, or None where a phoneme is not in the table."""
        self._pcm, self._events = [], []
        self.lib.espeak_SetVoiceByName(voice.encode())
        self.lib.espeak_SetParameter(1, speed, 0)
        self.lib.espeak_SetParameter(3, pitch, 0)
        data = text.encode()
        self.lib.espeak_Synth(data, len(data) + 1, 0, 1, 0, 1, None, None)
        self.lib.espeak_Synchronize()
        if not self._pcm:
            return None
        pcm = np.concatenate(self._pcm).astype(np.float32) / 32768
        total = len(pcm) / self.rate
        phones: list[Phone] = []
        marks = [(n, s / self.rate) for n, s in self._events] + [("", total)]
        for (name, start), (_, end) in zip(marks, marks[1:], strict=False):
            clean = re.sub(r"^[',%=|_!]+|;$|:$(?<=_:)", "", name)
            if end <= start:
                continue
            names = ["SIL"] if not clean or clean.startswith(("_", "(")) else ESPEAK.get(clean)
            if names is None:
                return None
            step = (end - start) / len(names)
            phones += [Phone(n, start + k * step, start + (k + 1) * step) for k, n in enumerate(names)]
        return soxr.resample(pcm, self.rate, RATE).astype(np.float32), phones


def transcripts() -> dict[str, str]:
    """Recording name to what is said in it."""
    out: dict[str, str] = {}
    for line in gzip.open(TRANSCRIPTS, "rt", encoding="utf-8", errors="replace"):
        if ":" in line and not line.startswith(";"):
            name, text = line.split(":", 1)
            text = text.strip()
            if text and not re.search(r"[\[\](){}<>*0-9]", text) and "/" not in name:
                out[name.strip()] = text
    return out


def recordings(rejected: list[str]) -> Iterator[tuple[str, NDArray[np.float32], list[Phone]]]:
    """The real recordings that align well: name, 16 kHz sound, phones."""
    import av
    from pocketsphinx import Decoder

    decoder = Decoder(lm=None, loglevel="FATAL", samprate=RATE)
    for name, text in sorted(transcripts().items()):
        path = SOUNDS / f"{name}.g722"
        if not path.exists():
            continue
        with av.open(str(path)) as container:
            pieces = [f.to_ndarray().reshape(-1) for f in container.decode(audio=0)]
        pcm = np.concatenate(pieces)
        words = [w for w in re.sub(r"[^a-z' ]", " ", text.lower().replace("-", " ")).split() if w.strip("'")]
        if not words or any(decoder.lookup_word(w) is None for w in words):
            rejected.append(f"{name}: a word is not in the dictionary")
            continue
        try:
            decoder.set_align_text(" ".join(words))
            for second in (False, True):
                if second:
                    decoder.set_alignment()
                decoder.start_utt()
                decoder.process_raw(pcm.astype(np.int16).tobytes(), full_utt=True)
                decoder.end_utt()
            found = [(p.name, p.start, p.duration) for w in decoder.get_alignment() for p in w]
        except RuntimeError:
            rejected.append(f"{name}: no alignment")
            continue
        phones = [
            Phone("SIL" if n == "SIL" or n.startswith("+") else n, start / 100, (start + length) / 100)
            for n, start, length in found
        ]
        spoken = [p for p in phones if p.name != "SIL"]
        seconds = len(pcm) / RATE
        rate = len(spoken) / max(0.2, sum(p.end - p.start for p in spoken))
        if not 5.0 <= rate <= 22.0 or any(p.name not in TARGETS and p.name not in DIPHTHONGS for p in phones):
            rejected.append(f"{name}: {rate:.1f} phones a second")
            continue
        if seconds >= 0.5:
            yield name, pcm.astype(np.float32) / 32768, phones


def save(folder: pathlib.Path, name: str, pcm: NDArray[np.float32], phones: list[Phone]) -> float:
    """Write one utterance; returns its length in seconds."""
    seconds = len(pcm) / RATE
    controls = controls_of(phones, seconds)
    controls *= voiced_gate(pcm, len(controls))[:, None]
    np.savez(
        folder / f"{name}.npz",
        pcm=np.clip(np.round(pcm * 32768), -32768, 32767).astype(np.int16),
        controls=controls,
        phone_names=np.array([p.name for p in phones]),
        phone_times=np.array([(p.start, p.end) for p in phones]),
    )
    return seconds


def main() -> None:
    """Make the whole corpus; a few minutes on one core."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--synthetic", type=int, default=900)
    args = parser.parse_args()
    folder = args.work / "speech" / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    rng, index, rejected = random.Random(5), [], []
    real = list(recordings(rejected))
    rng.shuffle(real)
    for i, (name, pcm, phones) in enumerate(real):
        split = "test" if i % 5 == 0 else "val" if i % 10 == 1 else "train"
        seconds = save(folder, f"real-{name}", pcm, phones)
        index.append({"name": f"real-{name}", "split": split, "origin": "real", "seconds": seconds})
    held = {e["name"][5:] for e in index if e["split"] == "test"}
    texts = [t for n, t in sorted(transcripts().items()) if n not in held and len(t) > 15]
    espeak = Espeak()
    voices = ["en-us", "en-gb", "en-gb-scotland", "en-us+f1", "en-us+f2", "en-us+f3", "en-us+f4", "en-us+f5", "en-us+m1", "en-us+m2", "en-us+m3", "en-us+m4", "en-us+m5", "en-us+m7", "en-us+Annie", "en-us+Denis", "en-us+klatt2", "en-us+Andrea", "en-gb-x-rp+f3", "en-us+linda", "en-us+steph", "en-us+Diogo"]
    for i in range(args.synthetic):
        kind = rng.random()
        text = rng.choice(texts) if kind < 0.4 else rng.choice(PHRASES) if kind < 0.55 else " ".join(rng.choice(x) for x in (SUBJECTS, VERBS, OBJECTS, ENDINGS))
        said = espeak.say(text, rng.choice(voices), rng.randint(125, 195), rng.randint(25, 75))
        if said is None:
            rejected.append(f"espeak: {text}")
            continue
        seconds = save(folder, f"espeak-{i:04d}", *said)
        index.append({"name": f"espeak-{i:04d}", "split": "val" if i % 20 == 0 else "train", "origin": "synthetic", "seconds": seconds})
    (folder / "rejected.txt").write_text("\n".join(rejected))
    (folder / "index.json").write_text(json.dumps(index, indent=1))
    for origin in ("real", "synthetic"):
        for split in ("train", "val", "test"):
            some = [e["seconds"] for e in index if e["origin"] == origin and e["split"] == split]
            print(f"{origin:9} {split:5} {len(some):4} utterances, {sum(some) / 60:.1f} min")
    print(f"{len(rejected)} rejected")


if __name__ == "__main__":
    main()
