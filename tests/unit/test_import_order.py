# SPDX-License-Identifier: Apache-2.0
"""Imports point down, in the order that docs/architecture.md draws; read from the source.

The drawing is the only place that says the order: a line is a floor, the highest first, and what
stands on one floor never imports its neighbours. Imports inside functions and those for type
checkers alone count like all others.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
NAME = "lipsync_fast"
DOOR = "lipsync_fast itself"
NATIVE = ("_native", "_cuda", "_emulated")
"""Modules that are not Python; everybody may import them."""

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""Imports that climb, and why they may: (who, whom)."""

NO_TORCH = ("models", "avatars.importing", "prepare", "train")
WALLS: dict[str, tuple[str, ...]] = {
    "api": NO_TORCH,
    "engine": NO_TORCH,
    "frontend": NO_TORCH,
    "supervisor": NO_TORCH,
    "utterances": ("models",),
    "output": ("models",),
    "client": ("avatars", "config", "families", "media", "onnx_io", "untrusted"),
    "gateway": (
        *("avatars", "audio", "models", "output", "prepare", "utterances"),
        *("ipc.frame_store", "ipc.messages", "ipc.offers", "ipc.ring"),
    ),
}
"""What a room never imports though it lies lower: what renders knows no torch, and a client of
lipsync.v1 knows nothing of avatars but their names."""


class Import(NamedTuple):
    """One import in the source; modules without the package's name in front."""

    who: str
    whom: str
    line: int

    def __str__(self) -> str:
        file = MODULES[self.who].relative_to(CHECKOUT)
        return f"{file}:{self.line} imports {NAME}.{self.whom}"


def _modules() -> dict[str, Path]:
    """All modules by their names; a package is named by its folder, the outermost ""."""
    found = {}
    for file in (CHECKOUT / NAME).rglob("*.py"):
        parts = file.relative_to(CHECKOUT / NAME).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = _modules()


@cache
def _statements(file: Path) -> tuple[ast.stmt, ...]:
    """All statements of a file, the inner ones too. Expressions hold no imports."""
    found, ahead = [], list(ast.parse(file.read_text()).body)
    while ahead:
        node = ahead.pop()
        found.append(node)
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            for inner in getattr(node, part, ()):
                # A handler and a case are no statements themselves, what is in them is.
                ahead += [inner] if isinstance(inner, ast.stmt) else inner.body
    return tuple(found)


def _imports(who: str, file: Path) -> Iterator[Import]:
    for node in _statements(file):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}, line {node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            outermost, _, whom = name.partition(".")
            if outermost != NAME or whom in NATIVE:
                continue
            if whom not in MODULES:  # a name in a module, not a module
                whom = whom.rpartition(".")[0]
            yield Import(who, whom, node.lineno)


@cache
def all_imports() -> list[Import]:
    return [i for who, file in sorted(MODULES.items()) for i in _imports(who, file)]


def _drawing() -> dict[str, dict[str, int]]:
    """For the house ("") and each room that is drawn: its parts, and how high they stand."""
    page = (CHECKOUT / "docs" / "architecture.md").read_text()
    section = page.split("## Imports point down", 1)[1].split("\n## ", 1)[0]
    [text] = re.findall(r"^```text\n(.*?)^```", section, re.S | re.M)
    rooms: dict[str, dict[str, int]] = {}
    for block in text.strip().split("\n\n"):
        title, *floors = block.splitlines()
        inside = "" if title == NAME else title + "."
        parts: dict[str, int] = {}
        for height, floor in enumerate(reversed(floors)):
            for part in re.split(r"\s{2,}", floor.strip()):
                name = "" if part == DOOR else inside + part
                assert name not in parts, f"{name} is drawn twice"
                parts[name] = height
        rooms["" if title == NAME else title] = parts
    return rooms


DRAWING = _drawing()


def _part(module: str, parts: dict[str, int]) -> str | None:
    """The drawn part that a module belongs to: itself, or the nearest folder around it."""
    name = module
    while name not in parts and name:
        name = name.rpartition(".")[0]
    return name if name in parts and (name or not module) else None


def _inside(room: str, module: str) -> bool:
    return not room or module.startswith(room + ".")


@pytest.mark.parametrize("room", DRAWING, ids=lambda room: room or NAME)
def test_every_module_has_a_floor(room: str) -> None:
    inside = [m for m in MODULES if _inside(room, m)]
    assert inside
    homeless = [m for m in inside if _part(m, DRAWING[room]) is None]
    assert not homeless, f"docs/architecture.md, Imports point down, does not draw {homeless}"
    empty = set(DRAWING[room]) - {_part(m, DRAWING[room]) for m in MODULES}
    assert not empty, f"docs/architecture.md draws what is not there: {sorted(empty)}"


@pytest.mark.parametrize("room", DRAWING, ids=lambda room: room or NAME)
def test_imports_point_down(room: str) -> None:
    parts, climbing = DRAWING[room], []
    for found in all_imports():
        if not (_inside(room, found.who) and _inside(room, found.whom)):
            continue
        who, whom = _part(found.who, parts), _part(found.whom, parts)
        if who is None or whom is None or who == whom or parts[whom] < parts[who]:
            continue
        if (found.who, found.whom) not in EXCEPTIONS:
            how = "its neighbour" if parts[whom] == parts[who] else "which stands higher"
            climbing.append(f"{found}, {how}")
    assert not climbing, "\n".join(climbing)


def test_walls_are_kept() -> None:
    through = [
        f"{found}, which {room} never does"
        for found in all_imports()
        for room, shut in WALLS.items()
        if (found.who + ".").startswith(room + ".")
        and any((found.whom + ".").startswith(other + ".") for other in shut)
    ]
    assert not through, "\n".join(through)


def test_the_client_stands_below_everything() -> None:
    """It is a distribution of its own, which installs without this one."""
    climbing = [
        f"{file.relative_to(CHECKOUT)}:{node.lineno}"
        for file in sorted((CHECKOUT / "client").rglob("*.py"))
        for node in _statements(file)
        for name in _named(node)
        if name.partition(".")[0] == NAME
    ]
    assert not climbing


def _named(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_exceptions_are_still_needed() -> None:
    pairs = {(found.who, found.whom) for found in all_imports()}
    gone = sorted(set(EXCEPTIONS) - pairs)
    assert not gone, f"no longer imported: take it out of EXCEPTIONS: {gone}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in all_imports():
        if (found.who, found.whom) not in EXCEPTIONS:
            graph[found.who].add(found.whom)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


@cache
def _names(file: Path) -> set[str]:
    """What a module defines or imports at its top level, and what it offers on demand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


@pytest.mark.parametrize("folder", ["bench", "tests", "tools"])
def test_programs_beside_the_package_import_what_is_there(folder: str) -> None:
    lacking = []
    for file in sorted((CHECKOUT / folder).rglob("*.py")):
        for node in _statements(file):
            if not isinstance(node, ast.ImportFrom) or node.module is None:
                continue
            outermost, _, module = node.module.partition(".")
            if outermost != NAME or module in NATIVE:
                continue
            names = _names(MODULES[module]) if module in MODULES else set()
            lacking += [
                f"{file.relative_to(CHECKOUT)}:{node.lineno}: {node.module}.{alias.name}"
                for alias in node.names
                if alias.name not in names
                and f"{module}.{alias.name}".lstrip(".") not in {*MODULES, *NATIVE}
            ]
    assert not lacking, lacking
