# SPDX-License-Identifier: Apache-2.0
"""Reads a Dockerfile: the instructions that ours use, and an error for any other."""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "RUN",
    "STOPSIGNAL", "USER", "WORKDIR",
}  # fmt: skip

FLAGS = {
    "COPY": {"from"},
    "HEALTHCHECK": {"interval", "timeout", "start-period", "start-interval"},
}


class DockerfileError(Exception):
    """What stands in the file cannot be carried out here."""


@dataclass(frozen=True)
class Step:
    """One instruction: its word, its flags (``--from=build``), and the rest of its text."""

    line: int
    word: str
    flags: dict[str, str]
    text: str

    def words(self) -> list[str]:
        """The text as a list: JSON where it is (the exec form), else split as a shell does."""
        if self.text.startswith("["):
            try:
                found = json.loads(self.text)
            except json.JSONDecodeError as error:
                raise DockerfileError(f"line {self.line}: not a list: {error}") from None
            return [str(word) for word in found]
        return shlex.split(self.text)


@dataclass
class Stage:
    """What follows a FROM.

    Attributes:
        base: the image, or the name of an earlier stage.
    """

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)


@dataclass
class Dockerfile:
    """A whole file.

    Attributes:
        arguments: those before the first FROM; a stage sees them where it names them by ARG.
    """

    stages: list[Stage] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)


def read(text: str, given: dict[str, str] | None = None) -> Dockerfile:
    """A Dockerfile, with its arguments put into each FROM.

    Args:
        given: values of ``--build-arg``.

    Raises:
        DockerfileError: there is an instruction, a flag or a form that this does not know.
    """
    file = Dockerfile()
    values, found = file.arguments, file.stages
    for step in _steps(text):
        if step.word == "FROM":
            words = step.text.split()
            if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
                raise DockerfileError(f"line {step.line}: expected FROM IMAGE [AS NAME]")
            base = expand(words[0], values)
            found.append(Stage(base, words[2] if len(words) == 3 else str(len(found))))
        elif not found:
            if step.word != "ARG":
                raise DockerfileError(f"line {step.line}: {step.word} before the first FROM")
            name, _, default = step.text.partition("=")
            values[name] = (given or {}).get(name, default)
        else:
            found[-1].steps.append(step)
    if not found:
        raise DockerfileError("there is no FROM")
    return file


def _steps(text: str) -> list[Step]:
    steps: list[Step] = []
    joined, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not (line.strip() or joined):
            continue
        begun = begun if joined else number
        if line.rstrip().endswith("\\"):
            joined += line.rstrip()[:-1]
            continue
        steps.append(_step((joined + line).strip(), begun))
        joined = ""
    if joined:
        raise DockerfileError(f"line {begun}: the last instruction does not end")
    return steps


def _step(text: str, line: int) -> Step:
    word, _, rest = text.partition(" ")
    word, rest = word.upper(), rest.strip()
    if word not in KNOWN or "<<" in rest:
        raise DockerfileError(f"line {line}: not known here: {text[:60]}")
    flags = {}
    while flag := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
        flags[flag[1]] = flag[2]
        rest = rest[flag.end() :]
    if unknown := flags.keys() - FLAGS.get(word, set()):
        raise DockerfileError(f"line {line}: {word} --{unknown.pop()} is not known here")
    return Step(line, word, flags, rest)


def expand(text: str, values: dict[str, str]) -> str:
    """Put variables in: $NAME and ${NAME}; one that is not set is empty."""
    return re.sub(
        r"\$(?:\{(\w+)\}|(\w+))", lambda found: values.get(found[1] or found[2], ""), text
    )


def assignments(step: Step, values: dict[str, str]) -> dict[str, str]:
    """What ENV and LABEL set: NAME=VALUE, as many as there are."""
    pairs = dict(word.partition("=")[::2] for word in shlex.split(step.text))
    if not all(pairs):
        raise DockerfileError(f"line {step.line}: expected NAME=VALUE")
    return {name: expand(value, values) for name, value in pairs.items()}


def context(folder: Path) -> list[Path]:
    """Files of a folder that its .dockerignore leaves, relative to it, in order."""
    file = folder / ".dockerignore"
    lines = file.read_text().splitlines() if file.exists() else []
    rules = [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    def kept(path: Path) -> bool:
        keep = True
        for rule in rules:
            pattern = rule.removeprefix("!")
            parts = [path, *path.parents][:-1]
            if any(_fits(part.parts, tuple(pattern.split("/"))) for part in parts):
                keep = rule.startswith("!")
        return keep

    def leads_on(path: Path) -> bool:
        """Whether something in a folder may be kept: environments and builds are not walked."""
        exceptions = (rule[1:].split("/") for rule in rules if rule.startswith("!"))
        return kept(path) or any(_leads(path.parts, tuple(parts)) for parts in exceptions)

    found = []
    for place, folders, files in os.walk(folder):
        below = Path(place).relative_to(folder)
        links = [name for name in folders if Path(place, name).is_symlink()]
        found += [below / name for name in files + links if kept(below / name)]
        folders[:] = [name for name in folders if leads_on(below / name)]
    return sorted(found)


def _leads(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a pattern may fit what lies in a folder."""
    if not parts or not pattern:
        return not parts
    if pattern[0] == "**":
        return True
    return fnmatchcase(parts[0], pattern[0]) and _leads(parts[1:], pattern[1:])


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
