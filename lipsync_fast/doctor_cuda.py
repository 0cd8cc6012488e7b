# SPDX-License-Identifier: Apache-2.0
"""What ``lipsync-fast doctor`` says of CUDA: driver, GPUs, this package's kernels, torch.

The driver is asked through its own library, and the kernels in a process of their own, so that
neither need be there, and one that aborts harms nothing.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import msgspec

from lipsync_fast.errors import words_of

PROBE_TIMEOUT_S = 60.0
_PROBE = "import json; from lipsync_fast import _cuda; print(json.dumps(_cuda.version()))"


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU."""

    index: int
    name: str
    memory_gib: float
    compute_capability: str


class Kernels(msgspec.Struct, frozen=True, kw_only=True):
    """The extension ``lipsync_fast._cuda``."""

    runtime: str | None
    """The CUDA version that it was built with, such as 13.0; None where it cannot be used."""
    architectures: list[str]
    """As CMake names them: ``80-real`` is code for one, ``90-virtual`` PTX, ``90`` both."""
    problem: str | None


class Torch(msgspec.Struct, frozen=True, kw_only=True):
    """PyTorch, by its files."""

    version: str | None
    cuda: bool
    """Whether it was built for CUDA."""


class Cuda(msgspec.Struct, frozen=True, kw_only=True):
    """What there is for engines on GPUs."""

    driver: str | None
    """The CUDA version that the driver speaks, such as 13.0; None where there is no driver."""
    problem: str | None
    gpus: list[Gpu]
    kernels: Kernels
    torch: Torch

    @property
    def driver_too_old(self) -> bool:
        """Whether the driver speaks an older major version than the kernels were built with."""
        if self.driver is None or self.kernels.runtime is None:
            return False
        return _major(self.driver) < _major(self.kernels.runtime)

    @property
    def usable(self) -> list[Gpu]:
        """The GPUs that engines can use."""
        if self.problem or self.kernels.problem or self.driver_too_old or not self.torch.cuda:
            return []
        made_for = self.kernels.architectures
        return [gpu for gpu in self.gpus if runs_on(made_for, gpu.compute_capability)]

    @property
    def sentence(self) -> str:
        """All of it in one sentence."""
        parts = [
            f"kernels: {self.kernels.problem}"
            if self.kernels.problem
            else f"kernels built with CUDA {self.kernels.runtime} for "
            + architectures_text(self.kernels.architectures),
            _driver_text(self),
            _torch_text(self.torch),
        ]
        total, usable = len(self.gpus), len(self.usable)
        if usable and usable == total:
            start = f"{_count(usable)} can be used"
        elif usable:
            start = f"{usable} of {_count(total)} can be used"
        else:
            start = f"{_count(total)} found, none can be used" if total else "no GPU"
        if self.gpus and not (self.kernels.problem or self.problem):
            made_for = self.kernels.architectures
            parts += [
                f"no kernels for GPU {gpu.index} (compute capability {gpu.compute_capability})"
                for gpu in self.gpus
                if not runs_on(made_for, gpu.compute_capability)
            ]
        return f"{start} ({', '.join(parts)})"


def examine_cuda() -> Cuda:
    """Look at all of it."""
    driver, problem, gpus = cuda_driver()
    return Cuda(
        driver=driver,
        problem=problem,
        gpus=gpus,
        kernels=examine_kernels(),
        torch=examine_torch(),
    )


def cuda_driver() -> tuple[str | None, str | None, list[Gpu]]:
    """The driver's version, what is wrong with it, and its GPUs."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None, f"no CUDA driver ({library} not found)", []
    status = cuda.cuInit(0)
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    driver = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if status:
        return driver, f"cuInit failed with error {status}", []
    cuda.cuDeviceGetCount(ctypes.byref(count))
    return driver, None, [_gpu(cuda, i) for i in range(count.value)]


def examine_kernels() -> Kernels:
    """Load the extension in a process of its own."""
    if importlib.util.find_spec("lipsync_fast._cuda") is None:
        return Kernels(runtime=None, architectures=[], problem="not built (no nvcc was there)")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Kernels(
            runtime=None, architectures=[], problem=f"cannot be loaded ({words_of(error)})"
        )
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        return Kernels(runtime=None, architectures=[], problem=f"cannot be loaded ({last[:200]})")
    found = msgspec.json.decode(done.stdout)
    return Kernels(runtime=found["runtime"], architectures=found["architectures"], problem=None)


def examine_torch() -> Torch:
    """torch's version and whether it has CUDA; it is not imported, which takes seconds."""
    try:
        version = importlib.metadata.version("torch")
        spec = importlib.util.find_spec("torch")
    except (importlib.metadata.PackageNotFoundError, ImportError, ValueError):
        return Torch(version=None, cuda=False)
    if spec is None or spec.origin is None:
        return Torch(version=None, cuda=False)
    library = Path(spec.origin).parent / "lib" / "libtorch_cuda.so"
    return Torch(version=version, cuda=library.exists())


def runs_on(architectures: list[str], compute_capability: str) -> bool:
    """Whether code for these architectures runs on a GPU of this compute capability.

    Machine code runs on its own generation from its own revision on, PTX on anything later.
    """
    major, _, minor = compute_capability.partition(".")
    wanted = 10 * int(major) + int(minor)
    for name in architectures:
        number, _, kind = name.partition("-")
        if not number.isdecimal() or int(number) > wanted:
            continue
        if kind != "real" or int(number) // 10 == int(major):
            return True
    return False


def architectures_text(architectures: list[str]) -> str:
    """Such as ``sm_80, sm_90 and PTX of 90``."""
    machine, ptx = [], []
    for name in architectures:
        number, _, kind = name.partition("-")
        if kind != "virtual":
            machine.append(f"sm_{number}")
        if kind != "real":
            ptx.append(f"PTX of {number}")
    return " and ".join([", ".join(machine)] * bool(machine) + [", ".join(ptx)] * bool(ptx))


def _torch_text(torch: Torch) -> str:
    if torch.version is None:
        return "no torch"
    return f"torch {torch.version} {'with' if torch.cuda else 'without'} CUDA"


def _driver_text(cuda: Cuda) -> str:
    if cuda.driver is None:
        return "no driver"
    text = f"driver for CUDA {cuda.driver}"
    if cuda.driver_too_old:
        return f"{text}, too old for these kernels"
    return f"{text}: {cuda.problem}" if cuda.problem else text


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _count(gpus: int) -> str:
    return f"{gpus} GPU{'s' if gpus != 1 else ''}"


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device = ctypes.c_int(0)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), device)
    memory = ctypes.c_size_t(0)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor = ctypes.c_int(0), ctypes.c_int(0)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # COMPUTE_CAPABILITY_MAJOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        memory_gib=round(memory.value / 2**30, 1),
        compute_capability=f"{major.value}.{minor.value}",
    )
