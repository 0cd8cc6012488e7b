# SPDX-License-Identifier: Apache-2.0
"""Engines of speech synthesis: a server that is asked, programs that are run, plug-ins."""

from __future__ import annotations

import itertools
import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast.config import Speech as SpeechConfig
from lipsync_fast.errors import ConfigError, SpeechError
from lipsync_fast.speech import check_engine, open_speech
from lipsync_fast.speech.wav import samples_of

PCM = bytes(range(256)) * 8


def wav(pcm: bytes, rate: int = 24_000, channels: int = 1, length: int = 0x7FFFFFFF) -> bytes:
    """A file as programs write it that do not know yet how long it will be."""
    form = struct.pack("<2H2L2H", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    note = b"LIST" + struct.pack("<L", 5) + b"abcde\0"
    return (
        b"RIFF" + struct.pack("<L", length) + b"WAVEfmt " + struct.pack("<L", 16) + form + note
        + b"data" + struct.pack("<L", length) + pcm
    )  # fmt: skip


@contextmanager
def asked(answer: bytes, status: int = 200) -> Iterator[tuple[str, list[tuple[Any, str, str]]]]:
    """A server that answers so; where it is, and what it was asked."""
    heard: list[tuple[Any, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.append((body, self.path, self.headers.get("Authorization", "")))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1", heard
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("answer", [PCM, wav(PCM)], ids=["pcm", "wav"])
def test_a_server_is_asked_as_openai_says(answer: bytes) -> None:
    with asked(answer) as (url, heard):
        config = SpeechConfig(engine="openai", url=url + "/", key="k", model="m", voice="v")
        speech = open_speech(config)
        assert speech.rate == 24_000
        assert b"".join(speech.speak("Good day.", "")) == PCM
        assert b"".join(speech.speak("Good day.", "w")) == PCM
    usual, named = heard
    assert usual == (
        {"input": "Good day.", "model": "m", "voice": "v", "response_format": "pcm"},
        "/v1/audio/speech",
        "Bearer k",
    )
    assert named[0]["voice"] == "w"


def test_a_server_that_refuses_says_why() -> None:
    with asked(b'{"error": "wrong key"}', 401) as (url, _):
        speech = open_speech(SpeechConfig(engine="openai", url=url))
        with pytest.raises(SpeechError, match=r"401.*wrong key"):
            list(speech.speak("a", ""))
    with pytest.raises(SpeechError, match="cannot be reached"):
        list(speech.speak("a", ""))


@pytest.mark.parametrize("url", ["", "api.example.org", "ftp://example.org"])
def test_a_server_needs_a_place(url: str) -> None:
    with pytest.raises(ConfigError, match=r"speech\.url"):
        check_engine(SpeechConfig(engine="openai", url=url))


@given(cuts=st.lists(st.integers(0, 400), max_size=9), headed=st.booleans())
def test_samples_are_the_same_however_the_stream_is_cut(cuts: list[int], headed: bool) -> None:
    whole = wav(PCM) if headed else PCM
    ends = sorted({0, *cuts, len(whole)})
    pieces = [whole[a:b] for a, b in itertools.pairwise(ends)]
    assert b"".join(samples_of(iter(pieces), 24_000)) == PCM


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (wav(PCM, rate=16_000), "16000 Hz"),
        (wav(PCM, channels=2), "2 channels"),
        (wav(b"")[:30], "ends in its header"),
        (b"RIFF" + bytes(1 << 17), "without samples"),
    ],
)
def test_a_wav_file_of_another_form_is_refused(stream: bytes, words: str) -> None:
    pieces = [stream[k : k + 1_000] for k in range(0, len(stream), 1_000)]
    with pytest.raises(SpeechError, match=words):
        list(samples_of(iter(pieces), 24_000))


# ---------------------------------------------------------------- programs
@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is run as espeak-ng: writes down what it was told, and does what lies beside it."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path / "espeak-ng"


def does(program: Path, script: str) -> None:
    told = f'echo "$@" > {program}.said; cat >> {program}.said; '
    program.write_text(f"#!/bin/sh\n{told}{script}\n")
    program.chmod(0o755)


def test_a_program_speaks(program: Path, tmp_path: Path) -> None:
    (tmp_path / "sound").write_bytes(wav(PCM, 22_050))
    does(program, f"cat {tmp_path}/sound")
    speech = open_speech(SpeechConfig(engine="espeak", voice="de"))
    assert speech.rate == 22_050
    assert b"".join(speech.speak("Guten Tag, --wie geht's?", "")) == PCM
    said = Path(f"{program}.said").read_text()
    assert "-v de" in said.splitlines()[0]
    assert said.splitlines()[1] == "Guten Tag, --wie geht's?", "never an argument"


def test_a_program_that_fails_says_why(program: Path) -> None:
    does(program, "echo no such voice >&2; exit 3")
    speech = open_speech(SpeechConfig(engine="espeak"))
    with pytest.raises(SpeechError, match="no such voice"):
        list(speech.speak("a", ""))


@pytest.mark.parametrize("voice", ["-f/etc/passwd", "--path=x", "../x", "a\nb"])
def test_a_voice_is_no_option_and_no_path(program: Path, voice: str) -> None:
    does(program, "true")
    speech = open_speech(SpeechConfig(engine="espeak"))
    with pytest.raises(SpeechError, match="no voice"):
        list(speech.speak("a", voice))


def test_a_program_ends_where_nobody_wants_the_rest(program: Path, tmp_path: Path) -> None:
    (tmp_path / "sound").write_bytes(wav(PCM, 22_050))
    does(program, f"cat {tmp_path}/sound; exec sleep 60")
    speech = open_speech(SpeechConfig(engine="espeak"))
    pieces, begun = speech.speak("a", ""), time.monotonic()
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begun < 20


def test_piper_says_its_rate_by_its_voice(program: Path, tmp_path: Path) -> None:
    does(program.with_name("piper"), "head -c 64 /dev/zero")
    model = tmp_path / "voice.onnx"
    with pytest.raises(ConfigError, match=r"speech\.model"):
        check_engine(SpeechConfig(engine="piper", model=str(model)))
    Path(f"{model}.json").write_text('{"audio": {"sample_rate": 16000}}')
    speech = open_speech(SpeechConfig(engine="piper", model=str(model)))
    assert speech.rate == 16_000
    assert b"".join(speech.speak("a", "2")) == bytes(64)


def test_a_program_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="espeak-ng"):
        check_engine(SpeechConfig(engine="espeak"))


# ---------------------------------------------------------------- plug-ins
def broken(config: SpeechConfig) -> Any:
    raise RuntimeError("no licence file")


def test_a_plug_in_that_cannot_start_is_one_line() -> None:
    with pytest.raises(ConfigError, match="no licence file"):
        check_engine(SpeechConfig(engine=f"{__name__}:broken"))
    for name in ("nobody", "os:nothing", "no.such.module:make", "a b:c"):
        with pytest.raises(ConfigError, match=r"speech\.engine"):
            check_engine(SpeechConfig(engine=name))
    check_engine(msgspec.structs.replace(SpeechConfig(), voice="x"))  # off
