# SPDX-License-Identifier: Apache-2.0
"""How long it takes from the sources to a command that runs.

    python bench/build.py [--out bench/results]

Builds the wheel from a copy of the tracked files, as ``make`` does, then installs it and all that
it needs into a new virtual environment. What pip fetches comes over the network, or from a cache.
Writes build.json. Processor time says more than the clock does where other programs run.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lipsync_fast.benchmark import program
from lipsync_fast.rounding import rounded

ROOT = Path(__file__).resolve().parents[1]


def timed(*command: str) -> tuple[float, float]:
    """Run a command; seconds by the clock, and of processor time."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, and write what was found."""
    args = program.options(__doc__, out=Path("bench/results"))
    about = program.about_this_run()
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
        ).stdout
        for name in filter(None, listed.decode().split("\0")):
            target = base / "source" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
        python = str(base / "venv/bin/python")
        subprocess.run([sys.executable, "-m", "venv", str(base / "venv")], check=True)
        pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
        wheels = base / "wheels"
        wheel_s, wheel_cpu_s = timed(
            *pip,
            "wheel",
            "--no-deps",
            "--wheel-dir",
            str(wheels),
            *(str(base / "source" / folder) for folder in ("client", ".")),
        )
        install_s, install_cpu_s = timed(*pip, "install", *map(str, wheels.glob("*.whl")))
        size = sum(f.stat().st_size for f in (base / "venv").rglob("*") if f.is_file())
    found = {
        **about,
        "wheel_s": wheel_s,
        "wheel_cpu_s": wheel_cpu_s,
        "install_s": install_s,
        "install_cpu_s": install_cpu_s,
        "installed_mb": size / 1e6,
    }
    program.write(args.out / "build.json", rounded(found))
    print(json.dumps(rounded(found), indent=1))


if __name__ == "__main__":
    main()
