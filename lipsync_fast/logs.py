# SPDX-License-Identifier: Apache-2.0
"""What the server's processes write to standard error: a line for each event, text or JSON.

    text   2026-01-31T12:00:00.123Z warning engine-2 answers are dropped front=front-1
    json   {"time":"2026-01-31T12:00:00.123Z","level":"warning","process":"engine-2", …}

Processes write to one standard error, each line at once. What comes from outside cannot begin a
line of its own: control characters are escaped.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import MutableMapping
from typing import Any

import msgspec

from lipsync_fast.config import Log


class _Lines(logging.Formatter):
    """Records to lines; ``fields`` of a record are a dict of what belongs to the event."""

    def __init__(self, process: str, *, json: bool) -> None:
        super().__init__()
        self._process, self._json = process, json

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        fields: dict[str, object] = getattr(record, "fields", {})
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        level = record.levelname.lower()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        at = f"{at}.{int(record.msecs):03d}Z"
        if self._json:
            event: dict[str, object] = {
                "time": at,
                "level": level,
                "process": self._process,
                "message": message,
            }
            event |= {
                k: v if isinstance(v, (int, float, bool)) else str(v) for k, v in fields.items()
            }
            if trace:
                event["trace"] = trace
            return msgspec.json.encode(event).decode()
        told = "".join(f" {k}={_plain(v)}" for k, v in fields.items())
        line = f"{at} {level} {self._process} {_escaped(message)}{told}"
        return f"{line}\n{trace}" if trace else line


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _plain(value: object) -> str:
    text = str(value)
    return text if text and text.isprintable() and " " not in text else ascii(text)


def setup_plain_logs(log: Log, process: str) -> None:
    """Set up ``logging`` alone; for engines, which start faster without structlog.

    Args:
        log: level and format.
        process: this process's name, said in each line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(process, json=log.format == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log.level.upper())


def setup_logs(log: Log, process: str) -> None:
    """Set up ``logging``, and structlog to go through it: an event's keys are its fields."""
    import structlog

    setup_plain_logs(log, process)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            _hand_over,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _hand_over(
    logger: object, method: str, event: MutableMapping[str, Any]
) -> tuple[tuple[str], dict[str, Any]]:
    """An event of structlog as what ``logging`` is called with."""
    told = {"exc_info": event.pop("exc_info")} if "exc_info" in event else {}
    message = str(event.pop("event", ""))
    return (message,), {"extra": {"fields": dict(event)}, **told}
