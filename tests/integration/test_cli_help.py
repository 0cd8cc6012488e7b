# SPDX-License-Identifier: Apache-2.0
"""What the command line says of itself, and to who uses it wrongly."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import LINE
from typer.main import get_command

from lipsync_fast.cli.commands import leave_only
from lipsync_fast.client.local import LocalServer
from lipsync_fast.rounding import rounded

COMMAND = [sys.executable, "-P", "-m", "lipsync_fast"]
PATIENCE_S = 300.0


@dataclass
class Done:
    """What a command has come to."""

    returncode: int
    stdout: str
    stderr: str


def run(*args: str, **environ: str) -> Done:
    """Run a command in this process: starting one takes longer than all that is tested here."""
    out, err, before = io.StringIO(), io.StringIO(), dict(os.environ)
    os.environ.update(environ)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as left,
        ):
            LINE(list(args), prog_name="lipsync-fast")
    finally:
        os.environ.clear()
        os.environ.update(before)
    return Done(int(left.value.code or 0), out.getvalue(), err.getvalue())


def every_command(line: Any = LINE) -> list[tuple[str, ...]]:
    def below(command: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        inner = getattr(command, "commands", {})
        return [path, *(p for name, c in inner.items() for p in below(c, (*path, name)))]

    return below(line, ())


# ---------------------------------------------------------------- help
def test_help_has_a_short_name_and_whole_sentences() -> None:
    assert len(every_command()) > 15
    for path in ((), ("avatar",)):
        short, long = run(*path, "-h"), run(*path, "--help")
        assert short.returncode == 0
        assert short.stdout == long.stdout
        listed = short.stdout.partition("Commands:\n")[2]
        assert listed
        assert "..." not in listed, "no sentence is cut off"
    whole = " ".join(run("avatar", "-h").stdout.split())
    assert "Make a running server refuse an avatar to new sessions, until it is loaded" in whole


@pytest.mark.parametrize("columns", [40, 80])
def test_help_fits_the_terminal(columns: int) -> None:
    for path in every_command():
        for line in run(*path, "-h", COLUMNS=str(columns)).stdout.splitlines():
            assert len(line) <= columns, (path, line)


def test_choices_are_shown() -> None:
    shown = run("serve", "-h", COLUMNS="200").stdout
    for words in ("[fp16|bf16|fp32]", "[debug|info|warning|error]", "[text|json]"):
        assert words in shown
    assert "[auto|cpu|cuda|cuda:N]" in run("render", "-h", COLUMNS="200").stdout
    assert "[synctalk|sanders|default_model|livetalking]" in run("avatar", "import", "-h").stdout


@pytest.mark.parametrize(
    ("args", "left"),
    [
        (["render", "avatar"], {("render",)}),
        (["two-words"], {("two-words",)}),
        (["avatar", "list", "x"], {("avatar", "list")}),
        (["avatar", "lst"], {("avatar", "list"), ("avatar", "inspect")}),
        (
            ["-h", "render"],
            {("render",), ("two-words",), ("avatar", "list"), ("avatar", "inspect")},
        ),
        ([], {("render",), ("two-words",), ("avatar", "list"), ("avatar", "inspect")}),
    ],
)
def test_only_what_is_asked_for_is_read(args: list[str], left: set[tuple[str, ...]]) -> None:
    def render() -> None: ...
    def two_words() -> None: ...

    some, inner = typer.Typer(), typer.Typer()
    some.callback()(lambda: None)
    some.command()(render)
    some.command()(two_words)
    inner.command("list")(render)
    inner.command("inspect")(render)
    some.add_typer(inner, name="avatar")
    leave_only(some, args)
    found = {path for path in every_command(get_command(some)) if path}
    assert found - {("avatar",)} == left


# ---------------------------------------------------------------- wrong use
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("rendr", "s.wav"), "there is no command 'rendr'; did you mean 'render'? (see"),
        (("prepare", "v.mp4"), "there is no command 'prepare'; did you mean 'avatar prepare'?"),
        (("avatar", "lst"), "did you mean 'list'? (see lipsync-fast avatar -h)"),
        (("xyzzy",), "there is no command 'xyzzy' (see lipsync-fast -h)"),
        (("render", "s.wav"), "missing option '--out' / '-o' (see lipsync-fast render -h)"),
        (("render", "s.wav", "-o", "o.mp4", "--avatr", "x"), "--avatar"),
        (("render", "s.wav", "-o", "o.mp4", "--start-frame", "x"), "'--start-frame'"),
        (("render", "s.wav", "-o", "o.mp4", "--backend", "gpu"), "expected one of auto, cpu"),
        (("serve", "--log-level", "loud"), "debug"),
        (("serve", "--precision", "fp64"), "fp16"),
        (("avatar", "train"), "DIR is missing"),
        (("avatar", "prerender", "demo", "s.wav", "--as", "x", "--content", "x"), "frame or mouth"),
        (("bench", "--part", "x"), "peers"),
    ],
)
def test_wrong_use_is_one_line(args: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr


def test_nothing_said_is_a_wish_for_help() -> None:
    done = run()
    assert "Usage: lipsync-fast" in done.stdout + done.stderr
    assert "error" not in done.stderr


# ---------------------------------------------------------------- completion
def completed(*words: str) -> list[str]:
    """What bash is told when Tab is pressed behind these words."""
    asked = {
        "_LIPSYNC_FAST_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("lipsync-fast", *words)),
        "COMP_CWORD": str(len(words)),
    }
    return run(**asked).stdout.split()


def test_shells_can_complete() -> None:
    assert completed("ren") == ["render"]
    assert completed("avatar", "unl") == ["unload"]
    assert "--contact-sheet" in completed("render", "--con")
    assert completed("render", "s.wav", "--backend", "c") == ["cpu", "cuda"]
    assert completed("render", "s.wav", "--avatar", "de") == ["demo"]
    assert completed("serve", "--log-level", "w") == ["warning"]
    assert "--install-completion" in run("-h").stdout


# ---------------------------------------------------------------- terminals
def on_terminal(args: list[str], columns: int, until: bytes, sent: int) -> tuple[bytes, int]:
    """Run on a terminal of its own until it has shown something, then send a signal."""
    pid, master = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ |= {"COLUMNS": str(columns), "LINES": "60", "TERM": "xterm"}
        os.execv(args[0], args)
    shown, end = b"", time.monotonic() + PATIENCE_S
    try:
        while until not in shown:
            assert time.monotonic() < end, shown
            if select.select([master], [], [], 0.1)[0]:
                shown += os.read(master, 65_536)
        os.kill(pid, sent)
        while time.monotonic() < end:
            if not select.select([master], [], [], 0.1)[0]:
                continue
            try:
                piece = os.read(master, 65_536)
            except OSError:  # nobody has the other end any more
                break
            if not piece:
                break
            shown += piece
        return shown, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(master)


@pytest.mark.parametrize("columns", [40, 200])
def test_status_is_readable_and_ends_by_ctrl_c(server: LocalServer, columns: int) -> None:
    command = [*COMMAND, "status", "--watch", "-v", "--folder", str(server.folder)]
    shown, code = on_terminal(command, columns, b"front-1", signal.SIGINT)
    assert code == 130, "as README says of Ctrl-C"
    assert b"Traceback" not in shown
    text = " ".join(re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).decode().split())
    name = server.status().engines[0].name
    assert name in text, "no name is broken into letters"
    assert ("restarts 0," in text) == (columns == 40)


def test_avatars_are_listed_on_narrow_terminals() -> None:
    shown, code = on_terminal([*COMMAND, "avatar", "list"], 40, b"path", signal.SIGCONT)
    text = shown.decode().replace("\r", "")
    assert code == 0
    assert re.search(r"^demo$", text, re.MULTILINE)
    assert re.search(r"^  size +1280x720$", text, re.MULTILINE)


# ---------------------------------------------------------------- JSON
def test_floats_are_rounded() -> None:
    value = {
        "a": [60.69999999999709, 0.1 + 0.2],
        "b": 0.000123456,
        "c": 7,
        "d": None,
        "e": "1.23456",
    }
    assert rounded(value) == {"a": [60.7, 0.3], "b": 0.000123, "c": 7, "d": None, "e": "1.23456"}


def decimals(value: Any) -> int:
    """The most digits behind a point, of numbers from a tenth on."""
    if isinstance(value, float) and abs(value) >= 0.1:
        return len(repr(value).partition(".")[2])
    if isinstance(value, dict):
        value = list(value.values())
    return max(map(decimals, value), default=0) if isinstance(value, list) else 0


def test_json_has_no_tails_of_digits(server: LocalServer) -> None:
    said = run("status", "--json", "--folder", str(server.folder))
    assert decimals(json.loads(said.stdout)) <= 3
    with urllib.request.urlopen(f"{server.http_url}/stats", timeout=PATIENCE_S) as answer:
        assert decimals(json.load(answer)) <= 3


# ---------------------------------------------------------------- signing
def test_what_was_installed_is_not_signed(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="the extra sign is not installed")
    from lipsync_fast.avatars.library import AvatarLibrary

    demo = AvatarLibrary().find("demo")
    before = demo.read_bytes()
    assert run("avatar", "keygen", str(tmp_path / "k")).returncode == 0
    (tmp_path / "link.lsa").symlink_to(demo)
    for given in ("demo", str(demo), str(tmp_path / "link.lsa")):
        done = run("avatar", "sign", given, "--key", str(tmp_path / "k"))
        assert done.returncode == 2
        assert re.match(r"error: [\w.]+ came with lipsync-fast, and what was inst", done.stderr)
    assert demo.read_bytes() == before
    shutil.copy(demo, tmp_path / "copy.lsa")
    signed = run("avatar", "sign", str(tmp_path / "copy.lsa"), "--key", str(tmp_path / "k"))
    assert signed.returncode == 0
