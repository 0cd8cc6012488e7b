# SPDX-License-Identifier: Apache-2.0
"""What a part has found, on the disk after every finding."""

from __future__ import annotations

import contextlib
import json
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class CannotRunError(Exception):
    """A part has no ground to stand on here; says why."""


class Findings:
    """Collects a part's values and checks; ``path`` always holds a whole JSON document.

    Args:
        path: of the JSON file.
        dry: nothing is measured: values are not kept, checks are.
    """

    def __init__(self, path: Path, dry: bool = False) -> None:
        self.path, self.dry = path, dry
        self._begun = time.monotonic()
        self._found: dict[str, Any] = {
            "status": "timed out",  # what is true of one that is killed now
            "reason": "",
            "dry": dry,
            "seconds": 0.0,
            "values": {},
            "checks": [],
        }
        self._write()

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [check["name"] for check in self._found["checks"] if not check["ok"]]

    def value(self, *where: str, value: Any) -> None:
        """Keep a measured value at a path of names."""
        if self.dry:
            return
        place = self._found["values"]
        for name in where[:-1]:
            place = place.setdefault(name, {})
        place[where[-1]] = value
        self._write()

    def fact(self, name: str, value: Any) -> None:
        """Keep what is true without measuring: versions, sizes."""
        self._found["values"][name] = value
        self._write()

    def check(self, name: str, ok: bool, detail: str = "") -> None:
        """Keep whether something is as it should be."""
        self._found["checks"].append({"name": name, "ok": bool(ok), "detail": detail})
        print(f"{'ok  ' if ok else 'FAIL'} {name}{': ' + detail if detail else ''}", flush=True)
        self._write()

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Go on behind a step that fails; the failure is a check that failed."""
        try:
            yield
        except CannotRunError as error:
            self.fact(f"{name}: cannot run", str(error))
            print(f"---- {name} cannot run: {error}", flush=True)
        except Exception as error:
            traceback.print_exc()
            self.check(name, False, f"{type(error).__name__}: {str(error)[:500]}")

    def end(self, status: str, reason: str = "") -> None:
        """Say how the part ended."""
        self._found["status"], self._found["reason"] = status, reason
        self._write()

    def _write(self) -> None:
        self._found["seconds"] = round(time.monotonic() - self._begun, 2)
        part = self.path.with_suffix(".new")
        part.write_text(json.dumps(self._found, indent=1))
        os.replace(part, self.path)
