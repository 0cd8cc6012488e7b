# SPDX-License-Identifier: Apache-2.0
"""What is decoded in several threads has been made ready when its module was imported.

msgspec looks at a struct's annotations when it decodes one for the first time, and a second thread
that decodes one meanwhile reads what is half made: the process ends. A decoder made at import has
looked at them already.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "lipsync_fast"
THREADS = ("api.py", "avatars", "client", "engine", "frontend", "ipc", "supervisor", "utterances")
"""Rooms whose code runs in programs of several threads."""
EXCEPTIONS = {
    "frontend/legacy/json_messages.py": "fields of types that are built in, or looked at there",
    "ipc/children.py": "once in a process's life, before all threads",
}

OPEN_TWICE = """
import sys, threading
import msgspec._utils as utils
from lipsync_fast.avatars.manifest import FORMAT, Manifest
from lipsync_fast.avatars.package import read_manifest
from lipsync_fast.errors import LipsyncError

begun, done = threading.Event(), threading.Event()
look = utils._get_class_mro_and_typevar_mappings

def slowly(kind):  # the first thread waits in the middle, at a struct that is a manifest's field
    inner = isinstance(kind, type) and kind.__module__ == Manifest.__module__
    if inner and kind is not Manifest and not begun.is_set():
        begun.set()
        done.wait(20)
    return look(kind)

utils._get_class_mro_and_typevar_mappings = slowly
data = b'{"format": "%s", "format_version": 1, "licence": "x", "name": 7}' % FORMAT.encode()

def read():
    try:
        read_manifest(memoryview(data), "here")
    except LipsyncError as error:
        said.append(str(error))

said = []
first = threading.Thread(target=read)
first.start()
while first.is_alive() and not begun.is_set():
    first.join(0.01)
read()
done.set()
first.join()
print(len(said), "said" if said[0] == said[1] else said)
"""


def test_two_threads_may_open_packages_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", OPEN_TWICE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "2 said\n"), done.stderr


def _sources() -> Iterator[Path]:
    for room in THREADS:
        path = PACKAGE / room
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def test_decoders_are_made_at_import() -> None:
    """None of those that look at a type where they are called."""
    found = []
    for file in _sources():
        name = str(file.relative_to(PACKAGE))
        if name in EXCEPTIONS or name.startswith("avatars/importing/"):
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                typed = any(word.arg == "type" for word in node.keywords)
                if node.func.attr == "decode" and typed:
                    found.append(f"{name}:{node.lineno}")
    assert not found
