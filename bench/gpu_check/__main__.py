# SPDX-License-Identifier: Apache-2.0
"""One part after the other, each in a process with a limit; then the report. See gpu_check.sh."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_check import report
from gpu_check.context import ROOT, tool
from gpu_check.plan import PARTS, REPORT_S, TOTAL_S, Part, allowed, missing, named
from gpu_check.wheels import FOLDER

GOOD = ("ok", "cannot run")
"""How parts of a good run end: what is not there cannot be checked, and the report says so."""


class Run:
    """A run's parts and what they have left."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.found: dict[str, dict[str, Any]] = {}
        self._until = time.monotonic() + args.seconds

    def all(self, parts: Sequence[Part]) -> None:
        """Run them in turn."""
        for part in parts:
            statuses = {name: str(found["status"]) for name, found in self.found.items()}
            reason = missing(part, statuses)
            seconds = allowed(part, self._until - time.monotonic())
            if reason is not None:
                self.found[part.name] = _ended("cannot run", reason, self.args.dry_run)
            elif seconds is None:
                why = "the time of all parts is over"
                self.found[part.name] = _ended("timed out", why, self.args.dry_run)
            else:
                self.found[part.name] = self._one(part, seconds)
            ended = self.found[part.name]
            words = f"{ended['status']}{': ' if ended['reason'] else ''}{ended['reason']}"
            print(f"{part.name:12s} {ended['seconds']:6.1f} s  {words}", flush=True)

    def _one(self, part: Part, seconds: float) -> dict[str, Any]:
        path, begun = self.work / f"{part.name}.json", time.monotonic()
        command = [
            *(sys.executable, "-m", "gpu_check.part", part.name),
            *("--json", str(path), "--work", str(self.work), "--wheels", str(self.args.wheels)),
            *(("--dry-run",) if self.args.dry_run else ()),
        ]
        with (self.work / f"{part.name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.work,  # not the checkout: the package that was built is to be imported
                env=self._environment(),
                start_new_session=True,
            )
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                log.write(f"\nkilled after {seconds:.0f} s\n".encode())
            finally:
                _kill(process)
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            found = _ended("broke", f"left nothing: {error}", self.args.dry_run)
        if found["status"] == "timed out" and process.returncode != -signal.SIGKILL:
            found["status"], found["reason"] = "broke", f"exit status {process.returncode}"
        found["seconds"] = round(time.monotonic() - begun, 1)
        return found

    def _environment(self) -> Mapping[str, str]:
        paths = [self.work / "site", ROOT / "bench", ROOT / "tests"]
        return os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONFAULTHANDLER": "1",
            "XDG_CACHE_HOME": str(self.work / "cache"),
            # A dry run shares its processors; threads that wait for each other would spin.
            **({"OMP_NUM_THREADS": "1"} if self.args.dry_run else {}),
        }

    def logs(self) -> dict[str, bytes]:
        """What each part has printed."""
        return {
            path.stem: path.read_bytes()
            for path in (self.work / f"{part.name}.log" for part in PARTS)
            if path.is_file()
        }


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a part and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ended(status: str, reason: str, dry: bool) -> dict[str, Any]:
    return {"status": status, "reason": reason, "dry": dry, "seconds": 0.0,
            "values": {}, "checks": []}  # fmt: skip


def commit() -> str:
    """What was checked, in words."""
    git = tool("git")
    if git is None or not (ROOT / ".git").exists():
        return "unknown (no repository here)"
    command = [git, "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    told = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return told.stdout.decode().strip() or "unknown"


def drawn(out: Path, work: Path) -> None:
    """Plots, in a process that may fail."""
    command = [sys.executable, "-m", "gpu_check.plots", str(out / "report.json"), str(out)]
    env = os.environ | {"PYTHONPATH": str(ROOT / "bench"), "MPLCONFIGDIR": str(work)}
    try:
        subprocess.run(command, cwd=work, env=env, check=True, timeout=REPORT_S)
    except (subprocess.SubprocessError, OSError) as error:
        print(f"no plots: {error}", file=sys.stderr)


def main() -> int:
    """0 where all that could run was good."""
    parser = argparse.ArgumentParser(prog="bench/gpu_check.sh")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "gpu")
    parser.add_argument("--wheels", type=Path, default=ROOT / FOLDER)
    parser.add_argument("--only", default="", help="parts, with commas between them")
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for everything")
    parser.add_argument("--dry-run", action="store_true", help="everything but the launches")
    args = parser.parse_args()
    args.out, args.wheels = args.out.resolve(), args.wheels.resolve()
    try:
        parts = named([name for name in args.only.split(",") if name])
    except ValueError as error:
        parser.error(str(error))
    begun = datetime.datetime.now(datetime.UTC)
    work = Path(tempfile.mkdtemp(prefix="gpu_check-"))
    try:
        run = Run(args, work)
        run.all(parts)
        about = {
            "when": begun.isoformat(timespec="seconds"),
            "commit": commit(),
            "took": f"{(datetime.datetime.now(datetime.UTC) - begun).seconds} s",
            "command": f"bench/gpu_check.sh {' '.join(sys.argv[1:])}".strip(),
        }
        report.write(args.out, parts, run.found, about)
        (args.out / "logs.txt").write_bytes(report.joined_logs(run.logs()))
        drawn(args.out, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for words in report.too_much(args.out):
        print(f"{args.out}: {words}", file=sys.stderr)
    print((args.out / "report.md").read_text().split("\n## Parts")[0])
    return 0 if all(found["status"] in GOOD for found in run.found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
