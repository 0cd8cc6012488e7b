# SPDX-License-Identifier: Apache-2.0
"""Collect the wheels that the GPU machine lacks, and check what would travel there.

    python bench/gpu_check/wheels.py [--into .gpu-wheels] [--without av]      (`make gpu-wheels`)

They are those of requirements-gpu.txt, for CPython 3.12 on x86-64, each pinned and without what it
needs: that machine has the rest, and no network. The repository and the wheels together must stay
below 64 MiB. Without av, the largest by far, all but the whole server's part runs.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements-gpu.txt"
FOLDER = ".gpu-wheels"
MOST_BYTES = 64 << 20
PYTHON = "3.12"
PLATFORMS = (
    *(f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)),
    *(f"manylinux{year}_x86_64" for year in (2014, 2010, 1)),
)


def pinned(text: str) -> dict[str, str]:
    """Names and versions of a requirements file.

    Raises:
        ValueError: a line pins nothing.
    """
    found = {}
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)", line)
        if match is None:
            raise ValueError(f"{line!r}: expected NAME==VERSION")
        found[normal(match[1])] = match[2]
    return found


def normal(name: str) -> str:
    """A package's name as all spellings of it have it in common."""
    return re.sub(r"[-_.]+", "-", name).lower()


def collected(files: Iterable[str]) -> dict[str, str]:
    """Names and versions of wheels.

    Raises:
        ValueError: two of one package: pip would refuse them all.
    """
    found: dict[str, str] = {}
    for file in files:
        name, version = file.split("-")[:2]
        if normal(name) in found:
            raise ValueError(f"{name}: {found[normal(name)]} and {version}")
        found[normal(name)] = version
    return found


def complaints(wanted: Mapping[str, str], have: Mapping[str, str]) -> list[str]:
    """How a folder differs from what was pinned."""
    return [
        *(f"{n}=={v} is missing" for n, v in wanted.items() if n not in have),
        *(f"{n} is {have[n]}, not {v}" for n, v in wanted.items() if have.get(n, v) != v),
        *(f"{n}=={v} was not asked for" for n, v in have.items() if n not in wanted),
    ]


def travelling(root: Path) -> int:
    """Bytes of tracked files, and of those that git does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout.split(b"\0")
    paths = {root / name.decode() for name in listed if name}
    return sum(path.lstat().st_size for path in paths if path.is_symlink() or path.is_file())


def download(into: Path, wanted: Mapping[str, str]) -> None:
    """Fetch the wheels; what lay there before is gone.

    Raises:
        subprocess.CalledProcessError: pip found one not.
    """
    shutil.rmtree(into, ignore_errors=True)
    command: Sequence[str] = [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--only-binary=:all:", "--implementation", "cp"),
        *("--python-version", PYTHON, "--dest", str(into)),
        *(word for platform in PLATFORMS for word in ("--platform", platform)),
        *(f"{name}=={version}" for name, version in wanted.items()),
    ]
    subprocess.run(command, check=True)


def check(into: Path, wanted: Mapping[str, str], root: Path = ROOT) -> list[str]:
    """What is wrong with a folder of wheels, in words, and with its size beside the repository."""
    files = sorted(path for path in into.iterdir() if path.suffix == ".whl")
    try:
        have = collected(path.name for path in files)
    except ValueError as error:
        return [f"two wheels of one package: {error}"]
    wrong = complaints(wanted, have)
    wheels, rest = sum(path.stat().st_size for path in files), travelling(root)
    words = f"wheels {mib(wheels)}, repository {mib(rest)}, together {mib(wheels + rest)}"
    print(f"{len(files)} wheels: {words} of {mib(MOST_BYTES)}")
    if wheels + rest > MOST_BYTES:
        wrong.append(f"{words}: more than {mib(MOST_BYTES)}; see --without")
    return wrong


def mib(size: int) -> str:
    """A size in words."""
    return f"{size / (1 << 20):.1f} MiB"


def main() -> int:
    """0 where all is collected and small enough."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--into", type=Path, default=ROOT / FOLDER)
    parser.add_argument("--without", action="append", default=[], help="a package to leave out")
    args = parser.parse_args()
    wanted = pinned(REQUIREMENTS.read_text())
    for name in args.without:
        if wanted.pop(normal(name), None) is None:
            parser.error(f"--without {name}: not in {REQUIREMENTS.name}")
    download(args.into, wanted)
    wrong = check(args.into, wanted)
    for words in wrong:
        print(words, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
