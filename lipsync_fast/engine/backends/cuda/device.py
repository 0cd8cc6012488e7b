# SPDX-License-Identifier: Apache-2.0
"""What the backend needs of a device, and the two that there are.

``CudaDevice`` is a GPU: torch for memory, streams, events and captured graphs, and the module
``_cuda`` for the kernels. ``HostDevice`` has the same face and runs everything at once on the host,
with the module ``_emulated``: the same code, real results, slow. It is for tests and for those who
work on this without a GPU, and never chosen by itself.

All that is particular to CUDA, capture above all, is in ``CudaDevice``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lipsync_fast.errors import BackendError
from lipsync_fast.extras import how_to_get, torch_with_cuda

Precision = Literal["fp16", "bf16", "fp32"]
DTYPES: dict[str, torch.dtype] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}
WARM_UPS = 3
"""Runs before a capture: what is chosen, compiled and allocated once must be before it."""


class Kernels(Protocol):
    """The functions of ``_cuda`` and ``_emulated`` (csrc/cuda/bindings.cpp)."""

    def device_count(self) -> int: ...
    def mel(self, pcm: Any, windows: Any, out: Any, stream: int = 0) -> None: ...
    def region_input(
        self, crops: Any, border: int, out: Any, stream: int = 0, half: bool = False
    ) -> None: ...
    def compose(self, jobs: NDArray[np.int64], stream: int = 0) -> None: ...
    def jpeg(
        self, pictures: NDArray[np.int64], tables: Any, out: Any, sizes: Any, stream: int = 0
    ) -> None: ...
    def jpeg_gather(
        self,
        pictures: NDArray[np.int64],
        out: Any,
        sizes: Any,
        packed: Any,
        offsets: Any,
        stream: int = 0,
    ) -> None: ...
    def jpeg_slot_bytes(self, units: int) -> int: ...
    def quant_tables(self, quality: int) -> NDArray[np.uint16]: ...


class Event(Protocol):
    """A point in a stream's work."""

    def record(self, stream: Any) -> None:
        """Be the point that the stream's work has reached so far."""
        ...

    def synchronize(self) -> None:
        """Wait in this thread until it has been passed."""
        ...


class Stream(Protocol):
    """Work in order."""

    @property
    def cuda_stream(self) -> int:
        """As kernels take it."""
        ...

    def wait_event(self, event: Any) -> None:
        """Let what follows wait for a point in another stream."""
        ...

    def synchronize(self) -> None:
        """Wait in this thread until all of it is done."""
        ...


class Fault(Enum):
    """What an exception says of the device."""

    OTHER = 0
    MEMORY = 1
    """It has not enough memory free; all else is well."""
    LOST = 2
    """Nothing works any more in this process."""


class Device(Protocol):
    """Where networks and kernels run."""

    name: str
    where: torch.device
    kernels: Kernels

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all."""
        ...

    def release_unused(self) -> None:
        """Give memory back that is kept for reuse."""
        ...

    def stream(self) -> Stream:
        """A new stream; none waits for another unless it is told to."""
        ...

    def on(self, stream: Stream) -> AbstractContextManager[Any]:
        """Work of torch in this thread goes to a stream."""
        ...

    def event(self) -> Event:
        """A new event; a thread that waits for it sleeps."""
        ...

    def pinned(self, size: int) -> Tensor:
        """So many bytes of host memory that the device can read and write."""
        ...

    def capture(
        self, warm: Callable[[], object], run: Callable[[], object]
    ) -> Callable[[], object]:
        """Make of ``run`` what can be repeated at the cost of one call; in any thread.

        Args:
            warm: does what ``run`` does with memory of its own; called some times before.
            run: reads and writes memory that stays where it is, and allocates nothing that is
                needed after it.

        Returns:
            Repeats ``run`` on the current stream. Those of one device never run at the same time:
            their inner memory is the same.
        """
        ...

    def fault(self, error: BaseException) -> Fault:
        """What an error means."""
        ...


# ---------------------------------------------------------------- the host
class HostStream:
    """Work that is done when it was begun."""

    cuda_stream = 0

    def wait_event(self, event: Any) -> None:
        """It has been passed."""

    def synchronize(self) -> None:
        """It is done."""


class HostEvent:
    """An event of such a stream."""

    def record(self, stream: Any) -> None:
        """Nothing is left to do."""

    def synchronize(self) -> None:
        """It has been passed."""


class HostDevice:
    """The host in a device's place.

    Args:
        free: bytes that it is to have.

    Raises:
        BackendError: the module ``_emulated`` is not there.
    """

    name = "emulated"

    def __init__(self, free: int = 4 << 30) -> None:
        self.where = torch.device("cpu")
        self.kernels = load_kernels("_emulated")
        self.free = free

    def memory(self) -> tuple[int, int]:
        """What it was given, all of it free."""
        return self.free, self.free

    def release_unused(self) -> None:
        """Nothing is kept."""

    def stream(self) -> Stream:
        """See ``Device``."""
        return HostStream()

    def on(self, stream: Stream) -> AbstractContextManager[Any]:
        """See ``Device``."""
        return contextlib.nullcontext()

    def event(self) -> Event:
        """See ``Device``."""
        return HostEvent()

    def pinned(self, size: int) -> Tensor:
        """See ``Device``."""
        return torch.zeros(size, dtype=torch.uint8)

    def capture(
        self, warm: Callable[[], object], run: Callable[[], object]
    ) -> Callable[[], object]:
        """``run`` itself."""
        return run

    def fault(self, error: BaseException) -> Fault:
        """See ``Device``."""
        return Fault.MEMORY if isinstance(error, MemoryError) else Fault.OTHER


# ---------------------------------------------------------------- a GPU
_LOST = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "device-side assert",
    "unspecified launch failure",
    "hardware stack error",
    "uncorrectable",
    "device is lost",
    "fallen off the bus",
    "invalid device context",
    "context is destroyed",
    "launch timed out",
    "NVLink",
    "MPS client",
)
"""Words of CUDA's errors after which every call in the process fails."""


class CudaDevice:
    """A GPU. Not yet run on one.

    Args:
        number: of the device, as CUDA counts them.
        exact: networks in float32 proper, not in TF32.

    Raises:
        BackendError: it cannot be used; the message says why.
    """

    def __init__(self, number: int = 0, *, exact: bool = False) -> None:
        self.kernels = load_kernels("_cuda")
        check_cuda(self.kernels, number)
        self.name = f"cuda:{number}"
        self.where = torch.device("cuda", number)
        torch.cuda.set_device(self.where)
        # One engine, one device: what holds for all of the process is set here.
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = not exact
        torch.backends.cuda.matmul.allow_tf32 = not exact
        self._capturing = threading.Lock()
        self._side = torch.cuda.Stream(self.where)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def memory(self) -> tuple[int, int]:
        """By the driver's count, and what torch keeps for reuse."""
        free, total = torch.cuda.mem_get_info(self.where)
        kept = torch.cuda.memory_reserved(self.where) - torch.cuda.memory_allocated(self.where)
        return free + kept, total

    def release_unused(self) -> None:
        """See ``Device``."""
        torch.cuda.empty_cache()

    def stream(self) -> Stream:
        """See ``Device``."""
        return torch.cuda.Stream(self.where)  # type: ignore[no-untyped-call]

    def on(self, stream: Stream) -> AbstractContextManager[Any]:
        """See ``Device``."""
        return _on(stream)

    def event(self) -> Event:
        """See ``Device``."""
        return torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def pinned(self, size: int) -> Tensor:
        """See ``Device``; zeros, so that no page is touched for the first time by the device."""
        return torch.zeros(size, dtype=torch.uint8, pin_memory=True)

    def capture(
        self, warm: Callable[[], object], run: Callable[[], object]
    ) -> Callable[[], object]:
        """A CUDA graph, beside what else the device does.

        ``torch.cuda.graph`` would stop the device and empty the allocator's caches before each
        capture; here frames are made meanwhile. So: other threads may allocate (thread_local), the
        capture has a stream of its own, one is under way at a time, and no garbage is collected
        within it, which might free what must not be freed then.
        """
        with self._capturing, torch.cuda.device(self.where):
            with torch.cuda.stream(self._side):
                for _ in range(WARM_UPS):
                    warm()
            self._side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(self._side), _no_garbage_collection():
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    run()
                finally:
                    graph.capture_end()
        return graph.replay

    def fault(self, error: BaseException) -> Fault:
        """See ``Device``; torch and the kernels' module raise RuntimeError with CUDA's words."""
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return Fault.MEMORY
        text = str(error)
        if not isinstance(error, RuntimeError):
            return Fault.OTHER
        if any(word in text for word in _LOST):
            return Fault.LOST
        if "out of memory" in text or "ALLOC_FAILED" in text:
            return Fault.MEMORY
        # A sticky error comes again from whatever is called next.
        try:
            torch.cuda.synchronize(self.where)
        except RuntimeError:
            return Fault.LOST
        return Fault.OTHER


@contextlib.contextmanager
def _on(stream: Stream) -> Iterator[None]:
    with torch.cuda.stream(cast(torch.cuda.Stream, stream)):
        yield


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


# ---------------------------------------------------------------- what is there
def load_kernels(module: str) -> Kernels:
    """The functions of ``_cuda`` or ``_emulated``.

    Raises:
        BackendError: this installation was built without.
    """
    try:
        return cast(Kernels, importlib.import_module(f"lipsync_fast.{module}"))
    except ImportError as error:
        raise BackendError(
            f"this installation has no lipsync_fast.{module} ({error}): it was built without nvcc;"
            " install CUDA's compiler, and build again with LIPSYNC_CUDA=on"
        ) from None


def check_cuda(kernels: Kernels, number: int) -> None:
    """Refuse a device that cannot be used.

    Raises:
        BackendError: it is not there, or torch has no CUDA.
    """
    count = kernels.device_count()
    if count == 0:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = f" (CUDA_VISIBLE_DEVICES is {seen!r})" if seen is not None else ""
        raise BackendError(
            f"CUDA finds no GPU{hidden}: there is none, or no NVIDIA driver for it;"
            " nvidia-smi shows what the driver sees"
        )
    if number >= count:
        raise BackendError(f"there is no GPU {number}: there are {count}, counted from 0")
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        raise BackendError(f"the installed torch has no CUDA: {torch_with_cuda()}")
    if not torch.cuda.is_available():
        raise BackendError(
            f"torch {torch.__version__} cannot use the GPU: its CUDA {torch.version.cuda} is most"
            f" likely newer than the driver; update the driver, or {how_to_get('cuda12')}, from"
            " PyTorch's package index"
        )
