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
import itertools
import json
import pathlib
import random
import re
from collections.abc import Iterator

import av
import numpy as np
import soxr
from numpy.typing import NDArray
from phones import DIPHTHONGS, TARGETS, Phone, controls_of, voiced_gate
from pocketsphinx import Decoder

RATE = 16_000
SOUNDS = pathlib.Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TRANSCRIPTS = pathlib.Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")

SENTENCES: dict[str, list[str]] = json.loads(
    pathlib.Path(__file__).with_name("sentences.json").read_text()
)
"""Whole phrases, and the parts of sentences that are put together at random."""
VOICES = [
    "en-us",
    "en-gb",
    "en-gb-scotland",
    "en-us+f1",
    "en-us+f2",
    "en-us+f3",
    "en-us+f4",
    "en-us+f5",
    "en-us+m1",
    "en-us+m2",
    "en-us+m3",
    "en-us+m4",
    "en-us+m5",
    "en-us+m7",
    "en-us+Annie",
    "en-us+Denis",
    "en-us+klatt2",
    "en-us+Andrea",
    "en-gb-x-rp+f3",
    "en-us+linda",
    "en-us+steph",
    "en-us+Diogo",
]

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PRONUNCIATIONS = {
    "backtick": "B AE K T IH K",
    "caret": "K EH R AH T",
    "digium": "D IH JH IY AH M",
    "forevermore": "F ER EH V ER M AO R",
    "iax": "IY AE K S",
    "keypad": "K IY P AE D",
    "lowercase": "L OW ER K EY S",
    "pbx": "P IY B IY EH K S",
    "prepend": "P R IY P EH N D",
    "prepending": "P R IY P EH N D IH NG",
    "rerecord": "R IY R IH K AO R D",
    "touchtone": "T AH CH T OW N",
    "undelete": "AH N D IH L IY T",
    "undeleted": "AH N D IH L IY T IH D",
    "unmute": "AH N M Y UW T",
    "unmuted": "AH N M Y UW T IH D",
    "uppercase": "AH P ER K EY S",
    "waldo's": "W AO L D OW Z",
    "xray": "EH K S R EY",
}
"""Words that the aligner's dictionary lacks."""
PAUSE_S = 0.3
"""Silence put around recordings that begin at once, which the aligner cannot bear."""

_TABLE = """
@=AH 3=ER 3:=ER @L=AH+L @2=AH @5=AH a=AE aa=AE a#=AH A:=AA A@=AA+R A=AA E=EH e@=EH+R I=IH
I#=IH I2=IH i=IY i:=IY i@=IY+AH i@3=IY+R 0=AA 0#=AA V=AH u:=UW u=UW U=UH U@=UH+R O:=AO
O=AO O@=AO+R o@=AO+R O2=AO aI=AY eI=EY OI=OY aU=AW oU=OW aI@=AY+AH aI3=AY+R aU@=AW+AH p=P
b=B t=T d=D k=K g=G f=F v=V T=TH D=DH s=S z=Z S=SH Z=ZH h=HH m=M n=N N=NG l=L r=R w=W j=Y
tS=CH dZ=JH t#=D t2=T d#=D ?=T L=L R=R m-=M n-=N l-=L r-=R z/2=Z x=HH C=HH
"""
ESPEAK: dict[str, list[str]] = {
    name: phones.split("+") for name, phones in (pair.rsplit("=", 1) for pair in _TABLE.split())
}
"""espeak-ng's English phonemes as ARPAbet; unknown ones make the sentence be left out."""


class Espeak:
    """libespeak-ng with exact phoneme times; not thread-safe, as the library is not."""

    class Event(ctypes.Structure):
        """``espeak_EVENT`` of speak_lib.h."""

        _fields_ = (
            ("type", ctypes.c_int),
            ("unique", ctypes.c_uint),
            ("text_position", ctypes.c_int),
            ("length", ctypes.c_int),
            ("audio_position", ctypes.c_int),
            ("sample", ctypes.c_int),
            ("user_data", ctypes.c_void_p),
            ("id", ctypes.c_char * 8),
        )

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("libespeak-ng.so.1")
        self.rate = self.lib.espeak_Initialize(2, 0, None, 1)  # synchronous, phoneme events
        samples, events = ctypes.POINTER(ctypes.c_short), ctypes.POINTER(self.Event)
        kind = ctypes.CFUNCTYPE(ctypes.c_int, samples, ctypes.c_int, events)
        self._callback = kind(self._receive)
        self.lib.espeak_SetSynthCallback(self._callback)
        self._pcm: list[NDArray[np.int16]] = []
        self._events: list[tuple[str, int]] = []

    def _receive(
        self, wav: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[Event]
    ) -> int:
        if wav and count > 0:
            self._pcm.append(np.ctypeslib.as_array(wav, (count,)).copy())
        i = 0
        while events[i].type != 0:
            if events[i].type == 7:
                self._events.append((events[i].id.decode("latin1"), events[i].sample))
            i += 1
        return 0

    def say(
        self, text: str, voice: str, speed: int, pitch: int
    ) -> tuple[NDArray[np.float32], list[Phone]] | None:
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
        phones = self._phones(len(pcm) / self.rate)
        if phones is None:
            return None
        return soxr.resample(pcm, self.rate, RATE).astype(np.float32), phones

    def _phones(self, seconds: float) -> list[Phone] | None:
        """The events as phones; None where one is not in the table."""
        phones: list[Phone] = []
        marks = [(n, s / self.rate) for n, s in self._events] + [("", seconds)]
        for (name, start), (_, end) in itertools.pairwise(marks):
            clean = re.sub(r"^[',%=|_!]+|;$|:$(?<=_:)", "", name)
            if end <= start:
                continue
            names = ["SIL"] if not clean or clean.startswith(("_", "(")) else ESPEAK.get(clean)
            if names is None:
                return None
            step = (end - start) / len(names)
            phones += [
                Phone(n, start + k * step, start + (k + 1) * step) for k, n in enumerate(names)
            ]
        return phones


def transcripts(everything: bool = False) -> dict[str, str]:
    """Recording name to what is said in it, by default where it is written in plain words."""
    out: dict[str, str] = {}
    with gzip.open(TRANSCRIPTS, "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if ":" not in line or line.startswith(";"):
                continue
            name, text = line.split(":", 1)
            text = text.strip()
            usual = not re.search(r"[\[\](){}<>*0-9]", text) and "/" not in name
            if text and (usual or everything):
                out[name.strip()] = text
    return out


def aligned(
    decoder: Decoder, pcm: NDArray[np.int16], text: str, slowest: float = 5.0
) -> list[Phone] | str:
    """The phones of a recording, or why they cannot be trusted."""
    letters = re.sub(r"[^a-z' ]", " ", text.lower().replace("-", " "))
    words = [w for w in letters.split() if w.strip("'")]
    if not words or any(decoder.lookup_word(w) is None for w in words):
        return "a word is not in the dictionary"
    try:
        decoder.set_align_text(" ".join(words))
        for second in (False, True):  # words first, then the phones within them
            if second:
                decoder.set_alignment()
            decoder.start_utt()
            decoder.process_raw(pcm.tobytes(), full_utt=True)
            decoder.end_utt()
        found = [(p.name, p.start, p.duration) for w in decoder.get_alignment() for p in w]
    except RuntimeError:
        return "no alignment"
    phones = [
        Phone("SIL" if n.startswith("+") else n, start / 100, (start + length) / 100)
        for n, start, length in found
    ]
    spoken = [p for p in phones if p.name != "SIL"]
    rate = len(spoken) / max(0.2, sum(p.end - p.start for p in spoken))
    known = all(p.name in TARGETS or p.name in DIPHTHONGS for p in phones)
    return phones if known and slowest <= rate <= 22.0 else f"{rate:.1f} phones a second"


def decoded(path: pathlib.Path) -> NDArray[np.float32]:
    """A recording's samples, -32768..32767."""
    with av.open(f"file:{path}") as container:
        pieces = [f.to_ndarray().reshape(-1) for f in container.decode(audio=0)]
    return np.concatenate(pieces).astype(np.float32)


def recordings(rejected: list[str]) -> Iterator[tuple[str, NDArray[np.float32], list[Phone]]]:
    """The real recordings that align well: name, 16 kHz sound, phones."""
    decoder = Decoder(lm=None, loglevel="FATAL", samprate=RATE)
    for name, text in sorted(transcripts().items()):
        path = SOUNDS / f"{name}.g722"
        if not path.exists():
            continue
        pcm = decoded(path)
        phones = aligned(decoder, pcm.astype(np.int16), text)
        if isinstance(phones, str):
            rejected.append(f"{name}: {phones}")
        elif len(pcm) / RATE >= 0.5:
            yield name, pcm / 32768, phones


def plain(text: str) -> str:
    """A transcript as the words that are said; empty where it does not tell them."""
    text = re.sub(r"(?<=\w) \[.\]$", "", text).replace("#", " pound ").replace("*", " star ")
    text = re.sub(r"(?<![\d.])\d(?![\d.])", lambda m: f" {DIGITS[int(m[0])]} ", text)
    if re.search(r"[\[\](){}<>0-9]", text):
        return ""
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower().replace(".m.", " m")).split())


def overlap(text: str, others: list[str]) -> bool:
    """Whether a transcript is one of the others, or holds or is held by one of some length."""
    for other in others:
        short, long = sorted((text, other), key=len)
        if text == other or (short.count(" ") >= 3 and f" {short} " in f" {long} "):
            return True
    return False


def more_recordings(
    taken: dict[str, str], rejected: list[str]
) -> Iterator[tuple[str, NDArray[np.float32], list[Phone]]]:
    """The speaker's other recordings: with figures, single letters and words, without pauses.

    None that says what a held-out recording says.

    Args:
        taken: Names of the recordings in use, and their splits.
        rejected: Takes the names of those that cannot be used, and why.
    """
    held = [plain(text) for n, text in transcripts().items() if taken.get(n, "train") != "train"]
    decoder = Decoder(lm=None, loglevel="FATAL", samprate=RATE)
    for word, said in PRONUNCIATIONS.items():
        if decoder.lookup_word(word) is None:
            decoder.add_word(word, said, True)
    pause = np.zeros(int(PAUSE_S * RATE), np.int16)
    for name, text in sorted(transcripts(everything=True).items()):
        path, words = SOUNDS / f"{name}.g722", plain(text)
        if not path.exists() or name in taken or not words:
            continue
        if overlap(words, held):
            rejected.append(f"{name}: held-out recordings say it")
            continue
        pcm = decoded(path)
        phones = aligned(
            decoder, np.concatenate([pause, pcm.astype(np.int16), pause]), words, slowest=3.0
        )
        if isinstance(phones, str):
            rejected.append(f"{name}: {phones}")
            continue
        seconds = len(pcm) / RATE
        inside = [
            Phone(p.name, max(0.0, p.start - PAUSE_S), min(seconds, p.end - PAUSE_S))
            for p in phones
        ]
        yield name, pcm / 32768, [p for p in inside if p.end > p.start]


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


Entry = dict[str, str | float]


def save_real(folder: pathlib.Path, rng: random.Random, rejected: list[str]) -> list[Entry]:
    """Write the real recordings, split by recording: one in five for the test."""
    index: list[Entry] = []
    real = list(recordings(rejected))
    rng.shuffle(real)
    for i, (name, pcm, phones) in enumerate(real):
        split = "test" if i % 5 == 0 else "val" if i % 10 == 1 else "train"
        seconds = save(folder, f"real-{name}", pcm, phones)
        index.append({"name": f"real-{name}", "split": split, "origin": "real", "seconds": seconds})
    taken = {str(e["name"])[5:]: str(e["split"]) for e in index}
    for name, pcm, phones in more_recordings(taken, rejected):
        name = f"real-{name.replace('/', '-')}"
        seconds = save(folder, name, pcm, phones)
        index.append({"name": name, "split": "train", "origin": "real", "seconds": seconds})
    return index


def sentence(rng: random.Random, texts: list[str]) -> str:
    """A transcript, a phrase, or a sentence put together."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(texts)
    if kind < 0.55:
        return rng.choice(SENTENCES["phrases"])
    parts = ("subjects", "verbs", "objects", "endings")
    return " ".join(rng.choice(SENTENCES[part]) for part in parts)


def save_synthetic(
    folder: pathlib.Path, rng: random.Random, rejected: list[str], texts: list[str], count: int
) -> list[Entry]:
    """Write ``count`` synthetic utterances, less those with unknown phonemes."""
    index: list[Entry] = []
    espeak = Espeak()
    for i in range(count):
        text = sentence(rng, texts)
        said = espeak.say(text, rng.choice(VOICES), rng.randint(125, 195), rng.randint(25, 75))
        if said is None:
            rejected.append(f"espeak: {text}")
            continue
        name, split = f"espeak-{i:04d}", "val" if i % 20 == 0 else "train"
        seconds = save(folder, name, *said)
        index.append({"name": name, "split": split, "origin": "synthetic", "seconds": seconds})
    return index


def main() -> None:
    """Make the whole corpus; a few minutes on one core."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--synthetic", type=int, default=900)
    args = parser.parse_args()
    folder = args.work / "speech" / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    rng, rejected = random.Random(5), list[str]()
    index = save_real(folder, rng, rejected)
    held = {str(e["name"])[5:] for e in index if e["split"] == "test"}
    texts = [t for n, t in sorted(transcripts().items()) if n not in held and len(t) > 15]
    index += save_synthetic(folder, rng, rejected, texts, args.synthetic)
    (folder / "rejected.txt").write_text("\n".join(rejected))
    (folder / "index.json").write_text(json.dumps(index, indent=1))
    for origin in ("real", "synthetic"):
        for split in ("train", "val", "test"):
            some = [e for e in index if (e["origin"], e["split"]) == (origin, split)]
            minutes = sum(float(e["seconds"]) for e in some) / 60
            print(f"{origin:9} {split:5} {len(some):4} utterances, {minutes:.1f} min")
    print(f"{len(rejected)} rejected")


if __name__ == "__main__":
    main()
