# SPDX-License-Identifier: Apache-2.0
"""What this machine has, what will therefore be used, and whether it computes the right numbers.

Everything is looked up without crashing: a missing driver or a broken package is a line in the
report. Packages are imported in processes of their own, so that one that aborts harms nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from lipsync_fast.doctor_cuda import Cuda, examine_cuda
from lipsync_fast.machine import processor_quota, processors
from lipsync_fast.version import __version__

IMPORT_TIMEOUT_S = 60.0
CPU_FEATURES = (
    "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
"""What matters for the speed of the networks, as the kernel names it."""

OPTIONAL_PACKAGES: tuple[tuple[str, str, str], ...] = (
    ("torch", "torch", "train, cuda12 or cuda13"),
    ("onnx", "onnx", "train"),
    ("safetensors", "safetensors", "train"),
    ("nvidia-dali", "nvidia.dali", "cuda12 or cuda13"),
)
"""Optional packages: name, module to import, extra that brings it."""
CORE_PACKAGES = ("numpy", "onnxruntime", "av", "soxr", "msgspec", "pillow", "typer", "rich")


class Processor(msgspec.Struct, frozen=True, kw_only=True):
    """The processor, as far as this process may use it."""

    name: str
    architecture: str
    cores: int
    """Cores that this process may run on."""
    quota: float | None
    """Cores that the control group grants, where it limits them."""
    features: list[str]
    memory_gib: float | None


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A package: its version if it can be used, else why not."""

    name: str
    version: str | None
    problem: str | None


class OnnxRuntime(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime of the CPU backend."""

    version: str | None
    providers: list[str]
    problem: str | None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the self-test."""

    name: str
    result: str
    """``ok``, ``failed`` or ``not checked``."""
    detail: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    version: str
    python: str
    system: str
    processor: Processor
    onnxruntime: OnnxRuntime
    cuda: Cuda
    core: list[Package]
    optional: list[Package]
    encoder: str
    """Which video encoder an MP4 gets."""
    used: list[str]
    self_test: list[Check]
    self_test_s: float

    @property
    def healthy(self) -> bool:
        """Whether nothing that is needed is missing and no check failed."""
        return (
            all(check.result != "failed" for check in self.self_test)
            and all(package.problem is None for package in self.core)
            and self.onnxruntime.problem is None
        )


def examine() -> Report:
    """Look at everything, and run the self-test."""
    runtime = onnx_runtime()
    cuda = examine_cuda()
    processor = examine_processor()
    begun = time.monotonic()
    checks = run_selftest()
    took = time.monotonic() - begun
    return Report(
        version=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor,
        onnxruntime=runtime,
        cuda=cuda,
        core=[_installed(name) for name in CORE_PACKAGES],
        optional=optional_packages(),
        encoder=_video_encoder(),
        used=_what_is_used(runtime, cuda),
        self_test=checks,
        self_test_s=round(took, 2),
    )


def examine_processor() -> Processor:
    """The processor's name, cores, features and memory, from the kernel where it tells."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    except OSError:
        pass  # not Linux: what platform knows must do
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    return Processor(
        name=fields.get("model name") or platform.processor() or "unknown",
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        quota=processor_quota(),
        features=[name for name in CPU_FEATURES if name in flags],
        memory_gib=_memory_gib(),
    )


def onnx_runtime() -> OnnxRuntime:
    """ONNX Runtime's version and execution providers."""
    try:
        import onnxruntime
    except Exception as error:  # a broken wheel may raise anything
        return OnnxRuntime(version=None, providers=[], problem=_reason(error))
    return OnnxRuntime(
        version=onnxruntime.__version__,
        providers=list(onnxruntime.get_available_providers()),
        problem=None,
    )


def optional_packages() -> list[Package]:
    """Each optional package: usable, or why not."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda item: _try_import(*item), OPTIONAL_PACKAGES))


def run_selftest() -> list[Check]:
    """Compare what this installation computes with golden data; within five seconds.

    What could not be checked is in the list too, and says so.
    """
    from lipsync_fast.selftest import CHECKS

    return [_run_check(name, check) for name, check in CHECKS]


def _run_check(name: str, check: Callable[[], str]) -> Check:
    from lipsync_fast.errors import NotCheckedError

    try:
        return Check(name=name, result="ok", detail=check())
    except NotCheckedError as reason:
        return Check(name=name, result="not checked", detail=str(reason))
    except Exception as error:  # whatever is broken is what the report is for
        return Check(name=name, result="failed", detail=_reason(error))


def _what_is_used(runtime: OnnxRuntime, cuda: Cuda) -> list[str]:
    used = []
    if runtime.problem is None:
        usable = processors()
        used.append(
            f"backend cpu: ONNX Runtime {runtime.version}, CPUExecutionProvider, "
            f"{usable} core{'s' if usable != 1 else ''}, decoder kernels: {_decoder_kernels()}"
        )
    else:
        used.append(f"no backend: onnxruntime cannot be used ({runtime.problem})")
    used.append(f"backend cuda: {cuda.sentence}")
    return used


def _decoder_kernels() -> str:
    try:
        from lipsync_fast.engine.backends.decoder import choose_kernel

        return choose_kernel() or "ONNX Runtime's"
    except Exception as error:
        return f"unknown: {_reason(error)}"


def _video_encoder() -> str:
    try:
        from lipsync_fast.output.mp4 import video_encoder

        return video_encoder()[0]
    except Exception as error:
        return f"none: {_reason(error)}"


def _installed(name: str) -> Package:
    try:
        return Package(name=name, version=importlib.metadata.version(name), problem=None)
    except importlib.metadata.PackageNotFoundError:
        return Package(name=name, version=None, problem="not installed")


def _try_import(name: str, module: str, extra: str) -> Package:
    try:
        absent = importlib.util.find_spec(module) is None
    except (ImportError, ValueError):  # a parent package is missing, or is half installed
        absent = True
    if absent:
        return Package(name=name, version=None, problem=f"not installed (extra {extra})")
    code = f"import {module} as m; print(getattr(m, '__version__', 'unknown'))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        problem = f"importing it took more than {IMPORT_TIMEOUT_S:.0f} s"
        return Package(name=name, version=None, problem=problem)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"import ended with {done.returncode}"]
        return Package(name=name, version=None, problem=lines[-1][:300])
    return Package(name=name, version=done.stdout.strip().splitlines()[-1], problem=None)


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
