# SPDX-License-Identifier: Apache-2.0
"""Write what images are built from, each with its hash: deploy/requirements-*.txt.

    python tools/make_locks.py [NAME…]        # as `make locks` runs it, with uv beside it

The newest versions that pyproject.toml allows are resolved from their descriptions alone: nothing
is downloaded, gigabytes of CUDA included. From which index they come is the machine's own affair,
and is not written.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "3.11"
"""That of the images' base, Debian 12."""
PLATFORM = "x86_64-manylinux_2_28"
SERVED = ("sign", "tokens", "grpc", "speech", "store")
"""Extras that every image has."""
BUILT_BY = ("cmake", "ninja", "cyclonedx-bom>=7")
"""What the back ends would fetch by themselves; and what lists an image's parts."""
NVCC = ("nvidia-cuda-nvcc>=13,<14", "nvidia-cuda-runtime>=13,<14", "nvidia-cuda-cccl>=13,<14")
"""The compiler, the static runtime that the extension is linked with, and its headers."""


def project(folder: str) -> dict[str, Any]:
    """A package's description."""
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())


def own(requirement: str) -> bool:
    """Whether a requirement is this repository's own client."""
    return re.match(r"lipsync-fast-client\b", requirement) is not None


def served(*extras: str) -> Iterator[str]:
    """What server and client ask for, with some extras."""
    for folder in (".", "client"):
        yield from filter(lambda r: not own(r), project(folder)["project"]["dependencies"])
    for extra in extras:
        yield from project(".")["project"]["optional-dependencies"][extra]


def builds() -> Iterator[str]:
    """What builds both wheels, and lists what they are installed with."""
    for folder in (".", "client"):
        yield from project(folder)["build-system"]["requires"]
    yield from BUILT_BY


LOCKS: dict[str, Callable[[], list[str]]] = {
    "build": lambda: list(builds()),
    "build-cuda": lambda: [*builds(), *NVCC],
    "cpu": lambda: list(served(*SERVED)),
    "cpu-webrtc": lambda: list(served(*SERVED, "webrtc")),
    "cuda": lambda: list(served(*SERVED, "webrtc", "cuda13")),
}
"""Name of the file to the requirements that it fulfils."""


def main() -> None:
    """Resolve, and write the files."""
    for name in sys.argv[1:] or LOCKS:
        file = ROOT / "deploy" / f"requirements-{name}.txt"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "uv", "pip", "compile", "-", "--output-file", file),
                *("--python-version", PYTHON, "--python-platform", PLATFORM, "--upgrade"),
                *("--generate-hashes", "--only-binary", ":all:", "--no-annotate", "--quiet"),
                *("--no-emit-index-url", "--no-emit-find-links", "--no-sources"),
                *("--custom-compile-command", "make locks"),
            ],
            input="\n".join(LOCKS[name]()),
            text=True,
        )
        if done.returncode:
            sys.exit(f"{file} could not be resolved; see above")


if __name__ == "__main__":
    main()
