# SPDX-License-Identifier: Apache-2.0
"""Build the package with nvcc and install it beside the wheels; nothing is fetched."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path

from gpu_check.context import ROOT, Context, needed, run, tool

ARCHITECTURE = "90"
CLIENT = "client/lipsync_fast_client"
MODULES = ("_native", "_emulated", "_cuda")


def main(context: Context) -> None:
    """Build, import, and say what the compiler made of the kernels.

    Raises:
        SystemExit: it cannot be built or imported: nothing else can be checked.
    """
    nvcc = needed("nvcc")
    begun = time.monotonic()
    status, _ = run(
        [sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation",
         "--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check",
         "--upgrade", "--target", context.site, "--verbose",
         "--config-settings", f"build-dir={context.work / 'build'}", str(ROOT)],
        600,
        env=os.environ
        | {
            "CUDACXX": nvcc,
            "LIPSYNC_CUDA": "on",
            "LIPSYNC_CUDA_ARCHITECTURES": ARCHITECTURE,
        },
    )  # fmt: skip
    context.found.check("the package can be built", status == 0)
    if status != 0:
        raise SystemExit("the package cannot be built")
    # Pure Python: what its wheel would hold. Its build would need what that machine lacks.
    shutil.copytree(ROOT / CLIENT, context.site / Path(CLIENT).name, dirs_exist_ok=True)
    context.found.value("seconds to build", value=round(time.monotonic() - begun, 1))
    program = (
        "import importlib, sys\n"
        f"made = [importlib.import_module('lipsync_fast.' + n) for n in {MODULES}]\n"
        "print(made[-1].__file__, made[-1].version(), made[-1].device_count(), sep='\\n')\n"
    )
    status, text = run([sys.executable, "-c", program], 60, cwd=context.work)
    context.found.check("its modules can be imported", status == 0, text[-300:])
    if status != 0:
        raise SystemExit("the package cannot be imported")
    where, version, devices = text.strip().splitlines()[-3:]
    context.found.check("it is the one just built", where.startswith(str(context.site)), where)
    context.found.check(f"it is for sm_{ARCHITECTURE}", ARCHITECTURE in version, version)
    context.found.check("it sees a GPU", devices != "0" or context.dry, f"{devices} devices")
    with context.found.attempt("registers"):
        _resources(context, where)


def _resources(context: Context, module: str) -> None:
    program = tool("cuobjdump")
    if program is None:
        context.found.fact("registers", "cuobjdump is not installed")
        return
    _, text = run([program, "-res-usage", module], 60)
    context.found.fact("registers and memory of kernels", resources(text))


def resources(text: str) -> dict[str, dict[str, int]]:
    """Registers, stack, shared and local memory of each kernel, from cuobjdump's words.

    Stack or local memory in a kernel means registers that ran out, or an array that is indexed by
    what is not known when it is compiled.
    """
    found: dict[str, dict[str, int]] = {}
    name = None
    for line in text.splitlines():
        match = re.search(r"Function (\S+):", line)
        if match is not None:
            name = match[1]
            continue
        pairs = re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)
        if name is not None and pairs:
            found[short_name(name)] = {kind.lower(): int(number) for kind, number in pairs}
            name = None
    return found


def short_name(mangled: str) -> str:
    """A kernel's own name, of the mangled name of the template that runs it."""
    words = []
    at = 0
    while at < len(mangled):
        match = re.compile(r"\d+").match(mangled, at)
        if match is None:
            at += 1
            continue
        length = int(match[0])
        word = mangled[match.end() : match.end() + length]
        if length and len(word) == length and re.fullmatch(r"[A-Za-z_]\w*", word):
            words.append(word)
            at = match.end() + length
        else:
            at = match.end()
    skipped = {"lipsync", "cuda", "detail", "run", "Args"}
    own = [word for word in words if word not in skipped]
    return "::".join(dict.fromkeys(own)) or mangled
