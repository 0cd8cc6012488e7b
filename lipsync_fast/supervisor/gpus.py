# SPDX-License-Identifier: Apache-2.0
"""Which GPUs a machine shows, where they are, and whether this installation can use them.

Asked of the kernel's files and of the installed packages' files: neither CUDA nor torch is loaded
here. Only where a GPU and all parts are there, a process is started that asks the driver.

GPUs are numbered from 0 in the order of their PCI addresses, as ``nvidia-smi`` numbers them; where
CUDA_VISIBLE_DEVICES names some, only those are there, numbered from 0 in its order.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lipsync_fast.errors import words_of

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
PROBE = "from lipsync_fast import _cuda; print(_cuda.device_count())"
PROBE_S = 30.0
EXTENSION, TORCH = "the extension lipsync_fast._cuda", "torch built for CUDA"


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        number: as the configuration names it.
        visible: what CUDA_VISIBLE_DEVICES of its engines is to be.
        processors: those next to it; nothing where that is not known, or all are.
    """

    number: int
    visible: str
    processors: tuple[int, ...] = ()

    @property
    def device(self) -> str:
        """As an engine's device."""
        return f"cuda:{self.number}"

    def environ(self) -> dict[str, str]:
        """What an engine's environment says of it: the only GPU that its process sees."""
        return {VISIBLE: self.visible, ORDER: "PCI_BUS_ID"}


@dataclass(frozen=True)
class DetectedGpus:
    """What there is for engines on GPUs.

    Attributes:
        gpus: those that the kernel shows and CUDA_VISIBLE_DEVICES allows.
        missing: what keeps them from being used, in words; nothing where they can be.
    """

    gpus: list[Gpu] = field(default_factory=list)
    missing: str = ""


def detect_gpus(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> DetectedGpus:
    """The GPUs of this machine, and what is missing to use them."""
    gpus = _visible(_shown(root), environ.get(VISIBLE))
    return DetectedGpus(gpus, _missing() if gpus else "")


# ---------------------------------------------------------------- the kernel's files
def _shown(root: Path) -> list[Gpu]:
    """All GPUs of the machine that have a device file here, in the order of their addresses."""
    names = [path.name for path in (root / "dev").glob("nvidia*")]
    minors = sorted(int(m[1]) for name in names if (m := re.fullmatch(r"nvidia(\d+)", name)))
    addresses = _addresses(root / "proc/driver/nvidia/gpus")
    known = sorted((addresses[minor], minor) for minor in minors if minor in addresses)
    if len(known) < len(minors):  # a driver that does not tell: their order is a guess
        return [Gpu(number, str(number)) for number in range(len(minors))]
    return [
        Gpu(number, str(number), processors_near(address, root))
        for number, (address, _) in enumerate(known)
    ]


def _addresses(folder: Path) -> dict[int, str]:
    """PCI address of each device file's number."""
    addresses = {}
    for path in folder.glob("*/information"):
        try:
            minor = re.search(r"^Device Minor:\s*(\d+)", path.read_text(), re.MULTILINE)
        except (OSError, UnicodeDecodeError):
            continue
        if minor is not None:
            addresses[int(minor[1])] = path.parent.name.lower()
    return addresses


def processors_near(address: str, root: Path = Path("/")) -> tuple[int, ...]:
    """The processors next to a PCI device that this process may use; none where all are, or it is
    not known."""
    folder = root / "sys/bus/pci/devices" / address
    try:
        node = int((folder / "numa_node").read_text())
        near = _numbers((folder / "local_cpulist").read_text())
    except (OSError, ValueError):
        return ()
    allowed = os.sched_getaffinity(0)
    usable = near & allowed
    return tuple(sorted(usable)) if node >= 0 and usable != allowed else ()


def _numbers(text: str) -> set[int]:
    """The kernel's way to write a list, such as "0-3,8"."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def _visible(gpus: list[Gpu], named: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES names; as for CUDA, what cannot be one ends the list."""
    if named is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in named.split(",")):
        if entry.isdecimal() and int(entry) < len(gpus):
            near = gpus[int(entry)].processors
        elif entry.startswith(("GPU-", "MIG-")) and gpus:
            near = ()  # its address is not asked for
        else:
            break
        chosen.append(Gpu(len(chosen), entry, near))
    return chosen


# ---------------------------------------------------------------- this installation
def _missing() -> str:
    """What GPUs that are there lack to be used."""
    lacking = []
    if importlib.util.find_spec("lipsync_fast._cuda") is None:
        lacking.append(f"{EXTENSION} is missing (build the package with LIPSYNC_CUDA=on)")
    if not has_torch():
        lacking.append(f"{TORCH} is missing (install the extra cuda12 or cuda13)")
    return " and ".join(lacking) or _driver_problem()


def has_torch() -> bool:
    """Whether torch is installed with CUDA, by its files: to import it takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    return (Path(spec.origin).parent / "lib" / "libtorch_cuda.so").exists()


def _driver_problem() -> str:
    """What the CUDA driver says, in a process that is gone afterwards."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_S,
            env={**os.environ, ORDER: "PCI_BUS_ID"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the CUDA driver does not answer ({words_of(error)})"
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
        return f"{EXTENSION} cannot be loaded ({last})"
    return "" if done.stdout.strip() != "0" else "the CUDA driver sees none of them"
