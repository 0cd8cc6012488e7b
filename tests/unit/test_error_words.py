# SPDX-License-Identifier: Apache-2.0
"""Messages say what is wrong in words, not in the system's numbers."""

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import lipsync_fast
from lipsync_fast.console import EXIT_ERROR, guarded
from lipsync_fast.errors import RingError, spent, words_of
from lipsync_fast.ipc.frame_store import FrameStore

SOURCE = Path(lipsync_fast.__file__).parent


def test_words_have_no_number_and_no_path() -> None:
    with pytest.raises(OSError, match="Errno") as missing:
        Path("/nowhere/at/all").read_bytes()
    assert words_of(missing.value) == os.strerror(errno.ENOENT)
    assert words_of(OSError("truncated")) == "truncated"
    assert words_of(ValueError("is odd")) == "is odd"


def test_memory_that_cannot_be_taken_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(fd: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    fd = FrameStore.create()
    try:
        monkeypatch.setattr(os, "dup", none_left)
        with pytest.raises(RingError) as caught:
            FrameStore(fd, bytes(32), 1, 8)
    finally:
        os.close(fd)
    assert str(caught.value) == "cannot share frames: Too many open files"


def bare_system_errors(path: Path) -> Iterator[str]:
    """Where a caught OSError itself becomes part of a text."""
    for handler in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(handler, ast.ExceptHandler) or handler.type is None:
            continue
        if handler.name and "OSError" in ast.unparse(handler.type):
            for node in ast.walk(handler):
                if isinstance(node, ast.FormattedValue) and ast.unparse(node.value) == handler.name:
                    yield f"{path.relative_to(SOURCE)}:{node.lineno}"


def test_no_message_has_a_bare_system_error() -> None:
    found = [place for path in SOURCE.rglob("*.py") for place in bare_system_errors(path)]
    assert found == [], "say words_of(error)"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "/x"),
        RuntimeError("cannot map a ring: Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
        ImportError("/lib/a.so: failed to map segment from shared object"),
        ExceptionGroup("two", [ValueError("else"), MemoryError()]),
    ],
)
def test_memory_that_is_gone_is_named_whoever_noticed(error: Exception) -> None:
    assert (spent(error) or "").startswith("no memory is left")


def test_what_is_spent_is_told_from_defects() -> None:
    assert "thread" in (spent(RuntimeError("can't start new thread")) or "")
    assert spent(OSError(errno.ENOSPC, "No space left on device", "/x/y")) == (
        "/x/y: No space left on device"
    )
    assert spent(OSError(errno.EMFILE, "Too many open files")) == "Too many open files"
    for other in (
        OSError(errno.ENOENT, "No such file or directory", "/x"),
        RuntimeError("a defect"),
        ImportError("No module named 'x'"),
        ExceptionGroup("one", [ValueError("a defect")]),
    ):
        assert spent(other) is None


def test_a_command_without_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded
    def command() -> None:
        raise MemoryError

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == EXIT_ERROR
    assert capsys.readouterr().err.count("\n") == 1
