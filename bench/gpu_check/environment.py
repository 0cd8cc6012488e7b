# SPDX-License-Identifier: Apache-2.0
"""What the machine is; and the packages that were brought along, into a folder of their own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys

from gpu_check.context import ROOT, Context, run, tool
from gpu_check.findings import CannotRunError
from gpu_check.wheels import REQUIREMENTS, collected, complaints, mib, pinned, travelling

QUERY = (
    "name,driver_version,memory.total,memory.used,temperature.gpu,power.limit,clocks.sm,"
    "clocks.mem,clocks_event_reasons.active,compute_mode,mig.mode.current,persistence_mode"
)
LEAST = "name,driver_version,memory.total"
TOOLS = ("nvcc", "cuobjdump", "compute-sanitizer", "ncu", "cmake", "ninja", "git")
TOLD = """
    torch numpy onnx onnxruntime pillow safetensors prometheus-client rich typer msgspec trio
    pyzmq websockets soxr av starlette hypercorn pybind11 scikit-build-core cmake
    ninja pytest matplotlib nvidia-dali-cuda130 nvidia-dali-cuda120 nvidia-ml-py
"""


def main(context: Context) -> None:
    """Look, and install."""
    found = context.found
    found.fact("python", sys.version.split()[0])
    found.fact("system", f"{platform.release()}, {os.cpu_count()} processors, {_memory()}")
    with found.attempt("the GPU as nvidia-smi sees it"):
        _gpu(context)
    found.fact("tools", {name: str(tool(name) or "none") for name in TOOLS})
    with found.attempt("wheels"):
        _install(context)
    found.fact("packages", {name: _version(name, context) for name in TOLD.split()})
    with found.attempt("torch"):
        _torch(context)


def _memory() -> str:
    return mib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _gpu(context: Context) -> None:
    smi = tool("nvidia-smi")
    if smi is None:
        context.found.fact("GPU", "nvidia-smi is not installed")
        context.found.check("there is a GPU", context.dry, "none, which a dry run needs not")
        return
    for query in (QUERY, LEAST):  # drivers differ in what they can be asked
        status, text = run([smi, f"--query-gpu={query}", "--format=csv,noheader"], 20)
        if status == 0:
            break
    context.found.check("there is a GPU", status == 0 or context.dry, text.strip()[:300])
    if status == 0:
        for number, line in enumerate(text.strip().splitlines()):
            cells = (cell.strip() for cell in line.split(","))
            context.found.fact(f"GPU {number}", dict(zip(query.split(","), cells, strict=False)))


def _install(context: Context) -> None:
    files = sorted(context.wheels.glob("*.whl")) if context.wheels.is_dir() else []
    if not files:
        raise CannotRunError(
            f"no wheels in {context.wheels}: `make gpu-wheels` collects them, and the folder must"
            " be brought along; what needs msgspec will fail"
        )
    wanted, have = pinned(REQUIREMENTS.read_text()), collected(f.name for f in files)
    wrong = complaints(wanted, have)
    context.found.check("the wheels are those that were pinned", not wrong, "; ".join(wrong))
    status, _ = run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
         "--no-compile", "--no-cache-dir", "--disable-pip-version-check", "--upgrade",
         "--target", context.site, *files],
        90,
    )  # fmt: skip
    context.found.check("the wheels can be installed", status == 0)
    size = sum(f.stat().st_size for f in files)
    if tool("git") and (ROOT / ".git").exists():
        both = size + travelling(ROOT)
        small = both <= 64 << 20
        context.found.check("repository and wheels are small enough", small, mib(both))


def _version(name: str, context: Context) -> str:
    for path in ([str(context.site)], None):
        try:
            if path is None:
                return importlib.metadata.version(name)
            for found in importlib.metadata.distributions(name=name, path=path):
                return f"{found.version} (brought along)"
        except importlib.metadata.PackageNotFoundError:
            pass
    return "none"


def _torch(context: Context) -> None:
    if importlib.util.find_spec("torch") is None:
        context.found.check("torch is installed", False)
        return
    import torch

    context.found.fact("torch", f"{torch.__version__}, CUDA {torch.version.cuda}")
    there = torch.cuda.is_available()
    context.found.check("torch can use the GPU", there or context.dry, str(there))
    if there:
        p = torch.cuda.get_device_properties(0)
        words = f"{p.name}, compute capability {p.major}.{p.minor}, {p.multi_processor_count}"
        context.found.fact(
            "device", f"{words} multiprocessors, {mib(p.total_memory)}, L2 {mib(p.L2_cache_size)}"
        )
