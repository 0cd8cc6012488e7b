# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast doctor``: the report of ``lipsync_fast.doctor`` for people, or as JSON."""

from __future__ import annotations

import typer

from lipsync_fast.doctor import Package, Report, examine
from lipsync_fast.errors import BackendError
from lipsync_fast.names import json_bytes
from lipsync_fast.rounding import rounded


def doctor_command(*, as_json: bool) -> None:
    """Examine the machine, and say it.

    Raises:
        BackendError: something that is needed is missing, or a check failed.
    """
    report = examine()
    if as_json:
        typer.echo(json_bytes(rounded(report), indent=2).decode())
    else:
        typer.echo("\n".join(report_lines(report)))
    if not report.healthy:
        raise BackendError(
            "this installation does not work as it should: see the lines marked with ! above"
        )


def report_lines(report: Report) -> list[str]:
    """The report as lines for people."""
    cpu, cuda, runtime = report.processor, report.cuda, report.onnxruntime
    cores = f"{cpu.cores} usable"
    if cpu.quota is not None:
        cores += f", limited to {cpu.quota:g} by the control group"
    providers = ", ".join(runtime.providers)
    lines = [
        f"lipsync-fast {report.version}, {report.python}, {report.system}",
        "",
        "This machine",
        _row("processor", cpu.name),
        _row("features", " ".join(cpu.features) or "unknown"),
        _row("cores", cores),
        _row("memory", f"{cpu.memory_gib} GiB" if cpu.memory_gib else "unknown"),
        _row("CUDA driver", cuda.problem or f"CUDA {cuda.driver}"),
    ]
    lines += [
        _row(
            f"GPU {gpu.index}",
            f"{gpu.name}, {gpu.memory_gib} GiB, compute capability {gpu.compute_capability}",
        )
        for gpu in cuda.gpus
    ]
    lines += ["", "Packages"]
    lines += [_package(package) for package in report.core]
    lines.append(_row("providers", providers or f"! {runtime.problem}"))
    lines.append(_row("MP4 encoder", report.encoder))
    lines += ["", "Optional packages"]
    lines += [_package(package, needed=False) for package in report.optional]
    lines += ["", "What will be used"]
    lines += [f"  {line}" for line in report.used]
    lines += ["", f"Self-test ({report.self_test_s:.1f} s)"]
    for check in report.self_test:
        mark = "!" if check.result == "failed" else " "
        lines.append(f"{mark} {check.name:<24}{check.result}: {check.detail}")
    return lines


def _row(name: str, value: str) -> str:
    return f"  {name:<20}{value}"


def _package(package: Package, *, needed: bool = True) -> str:
    if package.problem is None:
        return _row(package.name, package.version or "")
    row = _row(package.name, package.problem)
    return "!" + row[1:] if needed else row
