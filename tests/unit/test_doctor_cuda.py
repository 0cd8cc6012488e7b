# SPDX-License-Identifier: Apache-2.0
"""What ``doctor`` says of CUDA, in a sentence."""

from __future__ import annotations

import pytest

from lipsync_fast.doctor_cuda import (
    Cuda,
    Gpu,
    Kernels,
    Torch,
    architectures_text,
    examine_cuda,
    runs_on,
)

ALL = ["75-real", "80-real", "86-real", "89-real", "90"]
BUILT = Kernels(runtime="13.0", architectures=ALL, problem=None)
MISSING = Kernels(runtime=None, architectures=[], problem="not built (no nvcc was there)")
WITH, WITHOUT = Torch(version="2.11.0", cuda=True), Torch(version="2.13.0+cpu", cuda=False)


def gpu(index: int, capability: str) -> Gpu:
    return Gpu(index=index, name="GPU", memory_gib=80.0, compute_capability=capability)


def cuda(
    *capabilities: str,
    driver: str | None = "13.0",
    kernels: Kernels = BUILT,
    torch: Torch = WITH,
    problem: str | None = None,
) -> Cuda:
    gpus = [gpu(k, capability) for k, capability in enumerate(capabilities)]
    return Cuda(driver=driver, problem=problem, gpus=gpus, kernels=kernels, torch=torch)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ("6.1", False),
        ("7.0", False),
        ("7.5", True),
        ("8.0", True),
        ("8.7", True),  # as code for 8.6
        ("9.0", True),
        ("10.0", True),  # by the PTX of 90
        ("12.0", True),
    ],
)
def test_which_gpus_the_whole_build_runs_on(capability: str, runs: bool) -> None:
    assert runs_on(ALL, capability) is runs


def test_a_build_for_one_machine() -> None:
    assert not runs_on(["90-real"], "10.0")
    assert not runs_on(["90-real"], "8.9")
    assert runs_on(["90-virtual"], "9.0")
    assert not runs_on([], "9.0")
    assert architectures_text(["80-real", "90"]) == "sm_80, sm_90 and PTX of 90"
    assert architectures_text(["90-real"]) == "sm_90"
    assert architectures_text(["90-virtual"]) == "PTX of 90"


def test_sentences() -> None:
    kernels = "kernels built with CUDA 13.0 for sm_75, sm_80, sm_86, sm_89, sm_90 and PTX of 90"
    nothing = cuda(driver=None, kernels=MISSING, torch=WITHOUT, problem="no CUDA driver")
    assert nothing.sentence == (
        "no GPU (kernels: not built (no nvcc was there), no driver, torch 2.13.0+cpu without CUDA)"
    )
    good = cuda("9.0", "9.0")
    assert good.sentence == (
        f"2 GPUs can be used ({kernels}, driver for CUDA 13.0, torch 2.11.0 with CUDA)"
    )
    mixed = cuda("9.0", "6.1")
    assert mixed.sentence.startswith("1 of 2 GPUs can be used")
    assert "no kernels for GPU 1 (compute capability 6.1)" in mixed.sentence
    old = cuda("9.0", driver="12.4")
    assert old.sentence.startswith("1 GPU found, none can be used")
    assert "driver for CUDA 12.4, too old for these kernels" in old.sentence
    for lacking in (cuda("9.0", torch=WITHOUT), cuda("9.0", kernels=MISSING)):
        assert lacking.sentence.startswith("1 GPU found, none can be used")
    absent = Torch(version=None, cuda=False)
    assert "no torch" in cuda(torch=absent).sentence
    failed = cuda(problem="cuInit failed with error 100")
    assert "driver for CUDA 13.0: cuInit failed with error 100" in failed.sentence


def test_this_machine() -> None:
    found = examine_cuda()
    assert (found.driver is None) <= (not found.gpus)
    assert (found.kernels.problem is None) == bool(found.kernels.architectures)
    assert "\n" not in found.sentence
