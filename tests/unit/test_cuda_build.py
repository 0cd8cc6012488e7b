# SPDX-License-Identifier: Apache-2.0
"""The two builds of the CUDA kernels: how a build chooses, and the arrays that they take."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lipsync_fast import _emulated

ROOT = Path(__file__).resolve().parents[2]
BUILT = importlib.util.find_spec("lipsync_fast._cuda") is not None
needs_cuda = pytest.mark.skipif(
    not BUILT, reason="lipsync_fast._cuda was not built: no nvcc was there, or LIPSYNC_CUDA=off"
)
IMPORT = """
import json
from lipsync_fast import _cuda
maps = open("/proc/self/maps").read()
print(json.dumps([
    "libcuda.so" in maps or "libcudart.so" in maps, _cuda.device_count(), dir(_cuda),
    _cuda.version(),
]))
"""


@needs_cuda
def test_the_extension_imports_without_a_driver() -> None:
    """In a process that hides every GPU: no CUDA library is loaded by the import."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    loaded, devices, names, version = json.loads(done.stdout)
    assert not loaded
    assert devices == 0
    assert version["runtime"].split(".")[0].isdecimal()
    assert version["architectures"]
    # The same functions as on the host, but for the order of the threads.
    public = {name for name in dir(_emulated) if not name.startswith("_")}
    assert public - {"set_thread_order"} == {name for name in names if not name.startswith("_")}


@needs_cuda
@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
def test_without_a_driver_the_extension_says_what_is_missing() -> None:
    from lipsync_fast import _cuda

    assert _cuda.device_count() == 0
    pcm, out = np.zeros(4_000, np.int16), np.zeros((1, 1, 80, 16), np.float32)
    with pytest.raises(RuntimeError, match="driver"):
        _cuda.mel(pcm, np.zeros((1, 4), np.int32), out)
    with pytest.raises(RuntimeError, match="pinning memory"):
        _cuda.pin(bytearray(4096))


def test_the_emulation_is_always_there() -> None:
    assert _emulated.version() == {"runtime": "emulated", "architectures": []}
    assert _emulated.device_count() == 0
    assert _emulated.mel_products() > 10_000
    memory = bytearray(10)
    _emulated.pin(memory)
    _emulated.unpin(memory)
    with pytest.raises(ValueError, match="expected forward, backward or shuffled"):
        _emulated.set_thread_order("random")  # type: ignore[arg-type]


def configure(tmp_path: Path, nvcc: str | None, *options: str, **environ: str) -> tuple[int, str]:
    """Run cmake/cuda.cmake with a compiler of this name (None: there is none)."""
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("cmake is not installed")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(choice LANGUAGES NONE)\n"
        f'include("{(ROOT / "cmake" / "cuda.cmake").as_posix()}")\n'
        'message(STATUS "CHOSEN ${LIPSYNC_HAS_CUDA} ${LIPSYNC_ARCHITECTURES}")\n'
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LIPSYNC_", "CUDA"))}
    if nvcc is not None:
        compiler = tmp_path / nvcc
        compiler.write_text("#!/bin/sh\necho 'unsupported GNU version' >&2\nexit 1\n")
        compiler.chmod(0o755)
        clean["CUDACXX"] = str(compiler)
    else:
        options = (*options, "-DLIPSYNC_NVCC_PATHS=", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF")
        clean["PATH"] = str(tmp_path)
    ninja = shutil.which("ninja")
    generator = ["-G", "Ninja" if ninja else "Unix Makefiles"]
    generator.append(f"-DCMAKE_MAKE_PROGRAM={ninja or shutil.which('make')}")
    done = subprocess.run(
        [cmake, *generator, "-S", str(tmp_path), "-B", str(tmp_path / "b"), *options],
        capture_output=True,
        text=True,
        check=False,
        env={**clean, **environ},
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_a_compiler_that_does_not_work_is_passed_over(tmp_path: Path) -> None:
    status, said = configure(tmp_path, "nvcc")
    assert status == 0, said
    assert "nvcc cannot compile" in said
    assert "CHOSEN OFF" in said


def test_on_says_what_keeps_it_from_building(tmp_path: Path) -> None:
    status, said = configure(tmp_path, "nvcc", LIPSYNC_CUDA="on")
    assert status != 0
    assert "LIPSYNC_CUDA=on, but" in said
    assert "nvcc cannot compile" in said


def test_no_compiler(tmp_path: Path) -> None:
    status, said = configure(tmp_path, None)
    assert status == 0, said
    assert "Without CUDA: no nvcc was found" in said
    status, said = configure(tmp_path, None, "-DLIPSYNC_CUDA=on")
    assert status != 0
    assert "LIPSYNC_CUDA=on, but no nvcc was found" in said


def test_off_does_not_look_and_other_words_are_refused(tmp_path: Path) -> None:
    status, said = configure(tmp_path, "nvcc", "-DLIPSYNC_CUDA=on", LIPSYNC_CUDA="off")
    assert status == 0, said  # the environment goes before
    assert "cannot compile" not in said
    status, said = configure(tmp_path, "nvcc", LIPSYNC_CUDA="maybe")
    assert status != 0
    assert "LIPSYNC_CUDA is 'maybe': expected auto, on or off" in said


class Interface:
    """An array that shows itself by ``__cuda_array_interface__`` alone."""

    def __init__(self, array: NDArray[Any], **changes: object) -> None:
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, not array.flags.writeable),
            "version": 3,
        } | changes


class Capsule:
    """An array that shows itself by DLPack alone, and says where it lies."""

    def __init__(self, array: NDArray[Any], device: tuple[int, int]) -> None:
        self.array, self.device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, stream: int | None = None) -> object:
        assert stream == (-1 if self.device[0] == 2 else None)
        return self.array.__dlpack__()


def test_arrays_of_any_framework() -> None:
    pcm = np.random.RandomState(1).uniform(-1, 1, 4_000).astype(np.float32)
    windows = np.array([[0, 0, 4_000, 0]], np.int32)
    expected, out = np.zeros((2, 1, 1, 80, 16), np.float32)
    _emulated.mel(pcm, windows, expected)
    assert expected.any()
    for show in (
        Interface,
        lambda array: Interface(array, strides=array.strides),
        lambda array: Capsule(array, (1, 0)),
        lambda array: array.data,
    ):
        out[:] = np.nan
        _emulated.mel(show(pcm), show(windows), show(out))
        assert np.array_equal(out, expected)


def test_arrays_that_do_not_fit_are_refused() -> None:
    pcm, windows = np.zeros(4_000, np.float32), np.zeros((1, 4), np.int32)
    out = np.zeros((1, 1, 80, 16), np.float32)
    frozen = Interface(out, data=(out.ctypes.data, True))
    for samples, to, why in (
        (Capsule(pcm, (2, 0)), out, "pcm lies on a device: expected host memory"),
        (Capsule(pcm, (8, 0)), out, "pcm: its memory is neither a CUDA device's nor the host's"),
        (Interface(pcm, typestr=">f4"), out, "pcm: cannot read elements of type >f4"),
        (Interface(pcm, strides=(8,)), out, "pcm is not contiguous"),
        (Interface(pcm, strides=(6,)), out, "pcm: its strides are not whole elements"),
        (Interface(pcm, typestr="<f8"), out, "pcm is float64 .4000,.: expected int16 or float32"),
        (pcm, frozen, "out is read-only"),
    ):
        with pytest.raises(ValueError, match=why):
            _emulated.mel(samples, windows, to)
