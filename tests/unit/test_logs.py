# SPDX-License-Identifier: Apache-2.0
"""Lines of the log: one for each event, in text and JSON, ours and those of libraries alike."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from lipsync_fast.config import Log
from lipsync_fast.logs import get_logger, setup_logs


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logs(Log(), "front-1")
    log = get_logger("lipsync.test")
    log.info("100% done", count=3, path="a b", empty="", name="x")
    log.debug("not at this level")
    logging.getLogger("other").warning("plain %s", "words")
    out, err = capsys.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.endswith("Z info front-1 100% done count=3 path='a b' empty='' name=x")
    assert second.endswith("Z warning front-1 plain words")
    assert first[:2] == "20"
    assert first[10] == "T"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logs(Log(format="json", level="debug"), "front-1")
    log = get_logger("lipsync.test")
    log.debug("event", count=3, ratio=0.5, good=True, what=ValueError("no"))
    try:
        raise RuntimeError("here")
    except RuntimeError:
        log.exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "debug",
        "process": "front-1",
        "message": "event",
        "count": 3,
        "ratio": 0.5,
        "good": True,
        "what": "no",
    }
    assert second["level"] == "error"
    assert "RuntimeError: here" in second["trace"]


@pytest.mark.parametrize("kind", ["text", "json"])
def test_nobody_begins_a_line_of_his_own(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """What a client sends may be logged, and cannot pass for another event."""
    setup_logs(Log(format=kind), "front-1")
    evil = "x\n2026-01-01T00:00:00.000Z error supervisor all is lost\x1b[2J"
    get_logger("lipsync.test").info(evil, name=evil)
    logging.getLogger("other").error(evil)
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2
    assert "\x1b" not in err


def test_who_sets_nothing_up_gets_the_fields_too(caplog: pytest.LogCaptureFixture) -> None:
    """As in a program of somebody else's, which imports the package and logs in its own way."""
    get_logger("lipsync.engine").warning("no graph", size=4, reason="no room")
    assert caplog.messages == ["no graph size=4 reason='no room'"]


def test_an_error_that_is_given_is_traced(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logs(Log(level="error"), "engine-1")
    log = get_logger("lipsync.engine")
    log.warning("quiet")
    log.error("loud", exc_info=RuntimeError("given"))
    first, *trace = capsys.readouterr().err.splitlines()
    assert first.endswith("error engine-1 loud")
    assert trace == ["RuntimeError: given"]


def test_no_service_imports_structlog() -> None:
    """It takes as long as half of what else an engine needs before it starts."""
    code = (
        "import sys, lipsync_fast.supervisor.launch, lipsync_fast.engine.process\n"
        "import lipsync_fast.frontend.process\n"
        "assert 'structlog' not in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


LOUD = """
import logging, sys, threading, warnings
from lipsync_fast.config import Log
from lipsync_fast.logs import get_logger, setup_logs

setup_logs(Log(format="json"), "engine-1")
get_logger("lipsync.test").info("event", session=7, level="mine", time=3, ratio=float("nan"))
warnings.warn("old\\nand gone")
logging.getLogger("library").error("%s of %d", "one")
try:
    raise ValueError("here")
except ValueError:
    logging.getLogger("library").exception("it says")

class Falls:
    def __del__(self):
        raise RuntimeError("in the end")

Falls()
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
raise KeyError("nobody's")
"""


def test_whatever_a_process_says_is_json() -> None:
    """Warnings, libraries' mistakes, and exceptions that nobody has handled, in any thread."""
    done = subprocess.run([sys.executable, "-P", "-c", LOUD], capture_output=True, text=True)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    for line in lines:
        assert list(line)[:4] == ["time", "level", "process", "message"]
        assert line["process"] == "engine-1"
    own, warned, mistaken, traced, fallen, thread, last = lines
    assert own.items() >= {"level": "info", "level_": "mine", "time_": 3, "session": 7}.items()
    assert own["ratio"] is None
    assert warned["level"] == "warning"
    assert "old\nand gone" in warned["message"]
    assert mistaken["message"] == "%s of %d ('one',)"
    assert traced["message"] == "it says"
    assert "ValueError: here" in traced["trace"]
    assert "in the end" in fallen["trace"]
    assert thread["thread"] == "worker"
    assert "ZeroDivisionError" in thread["trace"]
    assert "KeyError" in last["trace"]
