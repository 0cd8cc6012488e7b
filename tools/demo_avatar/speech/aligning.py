# SPDX-License-Identifier: Apache-2.0
"""Which phone is spoken when, in a recording whose words nobody has written down.

Whisper writes the words down, each with its rough time; pocketsphinx then finds the phones. Where
the two disagree about a word's time, neither is believed: ``Aligned.valid`` says which frames can
be learned from. Both run offline.
"""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from corpus import RATE, Espeak
from faster_whisper import WhisperModel
from numpy.typing import NDArray
from phones import DIPHTHONGS, FPS, TARGETS, Phone
from pocketsphinx import Decoder

F32 = NDArray[np.float32]
PAUSE_S = 0.3
"""Silence put around a recording, since the aligner cannot bear one that begins at once."""
APART_S = 0.30
"""Whisper's and pocketsphinx's middle of a word may differ so much."""
LONGEST_S = 0.40
"""No phone but silence lasts longer in running speech."""


class Word(NamedTuple):
    """A word in small letters, and where it lies in the sound, in seconds."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Aligned:
    """The phones of a recording, and for each of its frames whether they can be believed."""

    phones: list[Phone]
    valid: NDArray[np.bool_]


class Writer:
    """Whisper-base, from a folder with its CTranslate2 files; writes numbers as words."""

    def __init__(self, folder: pathlib.Path, threads: int) -> None:
        self._model = WhisperModel(
            str(folder), device="cpu", compute_type="int8", cpu_threads=threads
        )
        vocabulary = self._model.hf_tokenizer.get_vocab()
        figures = sorted(i for token, i in vocabulary.items() if re.search(r"[0-9%$£&]", token))
        special = self._model.hf_tokenizer.token_to_id("<|endoftext|>")
        self._never = [-1, *(i for i in figures if i < special)]

    def words(self, pcm: F32, language: str = "en") -> list[Word]:
        """The words of a recording (-1..1, 16 kHz), with their rough times."""
        segments, _ = self._model.transcribe(
            pcm,
            language=language,
            beam_size=5,
            temperature=0.0,
            word_timestamps=True,
            condition_on_previous_text=False,
            suppress_tokens=self._never,
        )
        out = []
        for segment in segments:
            for word in segment.words or ():
                parts = plain_words(word.word)
                step = (word.end - word.start) / max(1, len(parts))
                for k, part in enumerate(parts):
                    out.append(Word(part, word.start + k * step, word.start + (k + 1) * step))
        return out


def plain_words(text: str) -> list[str]:
    """The words of a text in small letters, with apostrophes and nothing else."""
    text = text.lower().replace("’", "'").replace("-", " ")
    return [w for w in re.sub(r"[^a-z' ]", " ", text).split() if w.strip("'")]


class Aligner:
    """pocketsphinx, with espeak-ng's idea of how words are said that its dictionary lacks."""

    def __init__(self) -> None:
        self._decoder = Decoder(lm=None, loglevel="FATAL", samprate=RATE)
        self._espeak = Espeak()

    def align(self, pcm: NDArray[np.int16], words: list[Word]) -> Aligned | str:
        """The phones of a recording, or why there are none."""
        if not words:
            return "no words"
        for word in words:
            if self._decoder.lookup_word(word.text) is None and not self._learn(word.text):
                return f"nobody knows how to say {word.text!r}"
        pause = np.zeros(int(PAUSE_S * RATE), np.int16)
        sound = np.concatenate([pause, pcm, pause]).tobytes()
        try:
            self._decoder.set_align_text(" ".join(w.text for w in words))
            for second in (False, True):  # words first, then the phones within them
                if second:
                    self._decoder.set_alignment()
                self._decoder.start_utt()
                self._decoder.process_raw(sound, full_utt=True)
                self._decoder.end_utt()
            found = [
                (word.name, [(p.name, p.start / 100, (p.start + p.duration) / 100) for p in word])
                for word in self._decoder.get_alignment()
            ]
        except RuntimeError:
            return "no alignment"
        return believed(found, words, len(pcm) / RATE)

    def _learn(self, word: str) -> bool:
        """Take a word's phones from espeak-ng."""
        said = self._espeak.say(word, "en-us", 150, 50)
        names = [p.name for p in said[1] if p.name != "SIL"] if said else []
        if not names or any(n not in TARGETS and n not in DIPHTHONGS for n in names):
            return False
        self._decoder.add_word(word, " ".join(names), True)
        return True


Found = list[tuple[str, list[tuple[str, float, float]]]]
"""Words, or other sounds in angle brackets, with their phones' names, starts and ends."""


def believed(found: Found, words: list[Word], seconds: float) -> Aligned | str:
    """What pocketsphinx found, checked word by word against what Whisper heard."""
    frames = int(np.ceil(seconds * FPS - 1e-9))
    middles = (np.arange(frames) + 0.5) / FPS
    valid, phones, said = np.ones(frames, bool), list[Phone](), 0
    for name, parts in found:
        start, end = parts[0][1] - PAUSE_S, parts[-1][2] - PAUSE_S
        spoken = not name.startswith(("<", "[", "+"))
        if spoken:
            if said >= len(words):
                return "more words than were heard"
            heard, said = words[said], said + 1
            apart = abs((start + end) / 2 - (heard.start + heard.end) / 2)
            longest = max(e - s for _, s, e in parts)
            if apart > APART_S or longest > LONGEST_S:
                valid &= (middles < start - 0.1) | (middles >= end + 0.1)
        for phone, s, e in parts:
            inside = max(0.0, s - PAUSE_S), min(seconds, e - PAUSE_S)
            known = spoken and (phone in TARGETS or phone in DIPHTHONGS)
            if inside[1] > inside[0]:
                phones.append(Phone(phone if known else "SIL", *inside))
            if spoken and not known:
                return f"unknown phone {phone}"
    if said != len(words):
        return f"{said} of {len(words)} words"
    return Aligned(phones, valid) if valid.mean() > 0.5 else "the times disagree"
