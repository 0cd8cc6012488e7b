# SPDX-License-Identifier: Apache-2.0
"""The code blocks of the documents, as tests want them.

A shell block is one of two kinds. ``sh run``: a test runs all of it, in the order of its document.
``sh``: it needs what no test has (a cluster, an account, hours), and is read alone; pages of
docs/scenarios say so above it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "deploy/README.md", "client/README.md")
    ),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "scenarios").glob("*.md")),
]
RUNNABLE = "sh run"
NOT_RUN = re.compile(r"not run here", re.IGNORECASE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_BLOCK = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        path, line: its file, and the line of its first row.
        kind: its language, with a word behind it where there is one.
        text: what is in it.
        above: the paragraph over it, up to the block or the heading before.
    """

    path: Path
    line: int
    kind: str
    text: str
    above: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """Simple commands of a shell block, as words, without comments and redirections."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words: list[str] = []
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;>")
            lexer.whitespace_split = True
            found = iter([*lexer, ";"])
            for word in found:
                if word == ">":
                    next(found)
                    continue
                if set(word) <= set("&|;"):
                    if words:
                        yield words
                    words = []
                else:
                    words.append(word)


def blocks(*kinds: str) -> list[Block]:
    """All blocks of these kinds, of all where none is named."""
    found = []
    for path in DOCUMENTS:
        text, end = path.read_text(), 0
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start(3)) + 1
            above = text[end : match.start()].strip().rsplit("\n\n", 1)[-1]
            end = match.end()
            if not kinds or match[2] in kinds:
                found.append(Block(path, line, match[2], match[3], above))
    return found


def links() -> Iterator[tuple[Path, str]]:
    """Where the documents lead to within the repository: the document, and the link."""
    for path in DOCUMENTS:
        for target in _LINK.findall(_BLOCK.sub("", path.read_text())):
            if "://" not in target:
                yield path, target


def anchors(path: Path) -> set[str]:
    """The headings of a document, as links name them."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings}
