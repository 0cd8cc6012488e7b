# SPDX-License-Identifier: Apache-2.0
"""Fuzz what reads strangers' bytes, guided by the coverage that inputs reach.

    python tools/fuzz.py [--seconds 3600] [--only package,ring] [--results FOLDER]

Python's readers (``fuzzing/targets.py``) run under atheris, the native parts (``csrc/fuzz``) under
libFuzzer with the address and undefined-behaviour sanitizers, one after the other, all for so long
together. Needs ``pip install atheris`` and ``clang++``; what is missing is left out, and said.
Each begins with good input and with the corpus in ``tests/data/fuzz``, and what reaches something
new is added there, small inputs alone. An input that breaks something is written to
``tests/data/fuzz/NAME/found-…`` (a test from then on), and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
FUZZING = CHECKOUT / "tools" / "fuzzing"
CORPUS = CHECKOUT / "tests" / "data" / "fuzz"
RESULTS = CHECKOUT / "bench" / "results" / "fuzz"
NATIVE = ("ring", "mel", "image", "jpeg")
MOST_INPUTS, MOST_BYTES, MOST_EACH = 20, 4096, 16 << 10
"""What is kept of a target's corpus: inputs, bytes of one, and of all."""
FLAGS = ("-std=c++20", "-O1", "-g", "-fno-omit-frame-pointer", "-ffp-contract=off")
SANITIZERS = "-fsanitize=fuzzer,address,undefined"
OPTIONS = ("-rss_limit_mb=2048", "-timeout=25", "-print_final_stats=1", "-max_len=8192")


def main() -> int:
    """Run the campaign; 1 where something broke."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="of all together")
    parser.add_argument("--only", default="", help="names of targets, with commas between")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    sys.path.insert(0, str(FUZZING))
    import targets

    wanted = [n for n in asked.only.split(",") if n] or [*NATIVE, *targets.TARGETS]
    missing = []
    if find_spec("atheris") is None:
        missing.append("atheris is not installed: Python's readers are left out")
        wanted = [n for n in wanted if n in NATIVE]
    compiler = shutil.which("clang++")
    if compiler is None:
        missing.append("there is no clang++: the native parts are left out")
        wanted = [n for n in wanted if n not in NATIVE]
    print(*missing, sep="\n", end="\n" if missing else "")
    if not wanted:
        return 2
    rows = []
    with tempfile.TemporaryDirectory(prefix="lipsync-fuzz-") as folder:
        for name in wanted:
            base = Path(folder) / name
            base.mkdir()
            command = (
                [str(_built(str(compiler), name, base))]
                if name in NATIVE
                else [sys.executable, str(FUZZING / "run_python.py"), name]
            )
            good = targets.seeds(name) if name in targets.TARGETS else [bytes(64), os.urandom(512)]
            row = _fuzz(name, command, good, base, asked.seconds / len(wanted), asked.seed)
            rows.append(row)
            print(
                f"{name:15} {row['inputs']:>10,} inputs in {row['seconds']:>6.0f} s,"
                f" {row['edges']:>5} edges ({row['edges_at_first']} at first),"
                f" {row['crashes']} broke it",
                flush=True,
            )
            _write(rows, asked.results, missing)
    return int(any(row["crashes"] for row in rows))


def _built(compiler: str, name: str, folder: Path) -> Path:
    """A native target."""
    made = folder / "target"
    source = CHECKOUT / "csrc" / "fuzz" / f"{name}.cpp"
    flags = [*FLAGS, SANITIZERS, "-fno-sanitize-recover=all", f"-I{CHECKOUT / 'csrc'}"]
    if name == "jpeg":
        flags.append("-DLIPSYNC_EMULATED")
    subprocess.run([compiler, *flags, str(source), "-o", str(made)], check=True)
    return made


def _fuzz(
    name: str, command: list[str], good: list[bytes], base: Path, seconds: float, seed: int
) -> dict[str, Any]:
    """One target for so long; what became of it."""
    kept, grown, seeds, broken = CORPUS / name, base / "grown", base / "seeds", base / "broken"
    for folder in (kept, grown, seeds, broken):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(good):
        (seeds / str(number)).write_bytes(data)
    inputs = crashes = edges = at_first = 0
    begun = time.monotonic()
    while (left := seconds - (time.monotonic() - begun)) > 1 and crashes < 10:
        options = [
            *OPTIONS,
            f"-max_total_time={max(1, int(left))}",
            f"-seed={(seed + crashes) % (1 << 31) or 1}",
            f"-artifact_prefix={broken}/",
        ]
        done = subprocess.run(
            [*command, *options, str(grown), str(seeds), str(kept)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=base,
        )
        found = [int(n) for n in re.findall(r"cov: (\d+)", done.stderr)]
        ran = re.findall(r"stat::number_of_executed_units:\s+(\d+)", done.stderr)
        ran = ran or re.findall(r"^#(\d+)\t", done.stderr, re.M)[-1:]
        inputs += int(ran[-1]) if ran else 0
        edges, at_first = max([edges, *found]), at_first or (found or [0])[0]
        if done.returncode == 0:
            break
        crashes += 1
        (base / f"log-{crashes}").write_text(done.stderr)
        print(f"{name} broke:\n{done.stderr[-3000:]}", flush=True)
        if not any(broken.iterdir()):
            break
    for number, path in enumerate(sorted(broken.iterdir())[:5]):
        shutil.copy(path, kept / f"found-{path.name[:24]}-{number}")
    _keep(command, kept, [grown, seeds], base)
    return {
        "target": name,
        "seconds": round(time.monotonic() - begun, 1),
        "inputs": inputs,
        "edges": edges,
        "edges_at_first": at_first,
        "crashes": crashes,
        "kept": len([*kept.iterdir()]),
    }


def _keep(command: list[str], kept: Path, folders: list[Path], base: Path) -> None:
    """Add to a target's corpus the small inputs that reach what it does not."""
    merged = base / "merged"
    merged.mkdir()
    for path in kept.iterdir():
        if not path.name.startswith("found-"):
            shutil.copy(path, merged)
    options = ["-merge=1", *OPTIONS[:2]]
    subprocess.run(
        [*command, *options, str(merged), *map(str, folders)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=base,
    )
    size = 0
    # atheris cannot merge where its program is a script; what has grown is what reached more.
    found = [*merged.iterdir()] or [*folders[0].iterdir()]
    ours = [p for p in found if p.stat().st_size <= MOST_BYTES]
    for path in sorted(ours, key=lambda p: (p.stat().st_size, p.name))[:MOST_INPUTS]:
        size += path.stat().st_size
        if size > MOST_EACH:
            break
        if not (kept / path.name).exists():
            shutil.copy(path, kept / path.name)


def _write(rows: list[dict[str, Any]], folder: Path, missing: list[str]) -> None:
    """The figures, as JSON and as a table."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} processors",
        "left_out": missing,
        "targets": rows,
    }
    (folder / "figures.json").write_text(json.dumps(about, indent=1) + "\n")
    lines = [
        "# What fuzzing has found",
        "",
        f"`python tools/fuzz.py`, {sum(r['seconds'] for r in rows) / 60:.0f} minutes in all, Python"
        f" {about['python']}, {about['machine']}. Edges: branches that were reached, at the end and"
        " by the good inputs that it began with. Kept: inputs in `tests/data/fuzz`.",
        "",
        "| target | seconds | inputs | edges | at first | broke it | kept |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {r['target']} | {r['seconds']:.0f} | {r['inputs']:,} | {r['edges']}"
            f" | {r['edges_at_first']} | {r['crashes']} | {r['kept']} |"
            for r in rows
        ),
        *(["", *missing] if missing else []),
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
