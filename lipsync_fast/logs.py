# SPDX-License-Identifier: Apache-2.0
"""What the server's processes write to standard error: a line for each event, text or JSON.

    text   2026-01-31T12:00:00.123Z warning engine-2 answers are dropped front=front-1
    json   {"time":"2026-01-31T12:00:00.123Z","level":"warning","process":"engine-2", …}

An event is a few words that never vary; what varies are its fields. All services write them in one
way, ``get_logger(…).warning("answers are dropped", front=name)``, over the standard ``logging``, to
which libraries write as well: structlog says it alike, and takes more than half as long to import
as all that a supervisor or an engine needs before it starts.

Processes write to one standard error, each line at once. What comes from outside cannot begin a
line of its own: control characters are escaped. What Python would print by itself, warnings and
exceptions that nobody has handled, in any thread, is written as lines, too.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from types import TracebackType

from lipsync_fast.config import Log
from lipsync_fast.names import json_bytes, shown

_FIXED = frozenset(("time", "level", "process", "message", "trace"))
"""Keys of a line of JSON that say the same in every one; a field of that name gets a `_` behind."""


class EventLogger:
    """Writes events; any thread. A field that is called ``reason`` says why, in words."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, /, **fields: object) -> None:
        """For who looks for a defect."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """Something has happened as it should."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Something is not as it should be, and was coped with."""
        self._write(logging.WARNING, event, fields)

    def error(
        self, event: str, /, *, exc_info: BaseException | None = None, **fields: object
    ) -> None:
        """Something was lost, or somebody has to do something.

        Args:
            exc_info: a defect, whose trace is written, too.
        """
        self._write(logging.ERROR, event, fields, exc_info)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error, with the trace of the exception that is being handled."""
        self._write(logging.ERROR, event, fields, sys.exception())

    def _write(
        self,
        level: int,
        event: str,
        fields: dict[str, object],
        error: BaseException | None = None,
    ) -> None:
        self._logger.log(level, _Event(event, fields), exc_info=error, stacklevel=3)


def get_logger(name: str) -> EventLogger:
    """The logger of a service, such as "lipsync.front"."""
    return EventLogger(name)


def setup_logs(log: Log, process: str) -> None:
    """Have all that this process logs written as lines, and what Python says by itself.

    Args:
        log: level and format.
        process: this process's name, said in each line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(process, json=log.format == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log.level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _on_uncaught
    threading.excepthook = _on_thread_uncaught
    sys.unraisablehook = _on_unraisable


_uncaught = get_logger("lipsync.python")


def _on_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    _uncaught.error("the process fails", exc_info=error)


def _on_thread_uncaught(said: threading.ExceptHookArgs) -> None:
    if said.exc_type is SystemExit:
        return
    thread = said.thread.name if said.thread is not None else ""
    _uncaught.error("a thread has failed", thread=thread, exc_info=said.exc_value)


def _on_unraisable(said: sys.UnraisableHookArgs) -> None:
    what = said.err_msg or "Exception ignored in"
    _uncaught.error("a part has failed", what=f"{what} {said.object!r}", exc_info=said.exc_value)


class _Event:
    """An event as the message of a record: whoever formats that, as text, has all of it."""

    __slots__ = ("fields", "name")

    def __init__(self, name: str, fields: dict[str, object]) -> None:
        self.name, self.fields = name, fields

    def __str__(self) -> str:
        return shown(self.name) + "".join(f" {k}={_plain(v)}" for k, v in self.fields.items())


class _Lines(logging.Formatter):
    """Records to lines."""

    def __init__(self, process: str, *, json: bool) -> None:
        super().__init__()
        self._process, self._json = process, json

    def format(self, record: logging.LogRecord) -> str:
        event = record.msg
        if not isinstance(event, _Event):  # a library's
            event = _Event(_message(record), {})
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        level = record.levelname.lower()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        at = f"{at}.{int(record.msecs):03d}Z"
        if self._json:
            return self._json_line(at, level, event, trace)
        line = f"{at} {level} {self._process} {event}"
        return f"{line}\n{trace}" if trace else line

    def _json_line(self, at: str, level: str, event: _Event, trace: str) -> str:
        line: dict[str, object] = {
            "time": at,
            "level": level,
            "process": self._process,
            "message": event.name,
        }
        line |= {
            f"{k}_" if k in _FIXED else k: v if isinstance(v, (int, float, bool)) else str(v)
            for k, v in event.fields.items()
        }
        if trace:
            line["trace"] = trace
        return json_bytes(line).decode()


def _message(record: logging.LogRecord) -> str:
    """What a library says; where it has given its words other values than they have room for,
    both."""
    try:
        return record.getMessage()
    except Exception:
        return f"{record.msg!s} {record.args!r}"


def _plain(value: object) -> str:
    text = str(value)
    return text if text and text.isprintable() and " " not in text else ascii(text)
