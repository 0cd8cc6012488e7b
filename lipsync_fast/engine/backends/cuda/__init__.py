# SPDX-License-Identifier: Apache-2.0
"""The CUDA backend, from the modules beside this one; torch is imported when it is made.

Not yet run on a GPU: on the host, with ``HostDevice``, all of it but ``CudaDevice`` is.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Literal

from lipsync_fast.errors import BackendError
from lipsync_fast.extras import torch_with_cuda

if TYPE_CHECKING:
    from lipsync_fast.engine.backends.cuda.backend import CudaBackend

Precision = Literal["fp16", "bf16", "fp32"]


def create(number: int = 0, *, precision: Precision = "fp16", live: bool = False) -> CudaBackend:
    """The backend on a GPU.

    Args:
        number: of the GPU, as CUDA counts those that this process sees.
        precision: of the networks.
        live: as ``create_backend`` has it.

    Raises:
        BackendError: it cannot run here; the message says what is missing.
    """
    # What is looked for first is what costs least to find missing.
    if importlib.util.find_spec("torch") is None:
        raise BackendError(f"the CUDA backend needs torch: {torch_with_cuda()}")
    from lipsync_fast.engine.backends.cuda.backend import CudaBackend
    from lipsync_fast.engine.backends.cuda.device import CudaDevice

    device = CudaDevice(number, exact=precision == "fp32")
    return CudaBackend(device, precision=precision, live=live)


def usable_gpus() -> int:
    """How many GPUs the CUDA backend could run on; 0 where anything else is missing, too.

    Quick where there is none: torch is imported only where the driver shows a GPU.
    """
    if importlib.util.find_spec("torch") is None:
        return 0
    try:
        kernels = importlib.import_module("lipsync_fast._cuda")
    except ImportError:
        return 0
    count: int = kernels.device_count()
    if count == 0:
        return 0
    import torch

    return count if torch.cuda.is_available() else 0
