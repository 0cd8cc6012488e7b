# SPDX-License-Identifier: Apache-2.0
"""How to get what an extra of this package brings, wherever the package was installed from.

The package may come as a wheel, or from a checkout, and is on no index: its own name is no use to
``pip``. What an extra consists of is: so that is what is named.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex

_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([^'"]+)['"]""")


def how_to_get(extra: str) -> str:
    """A command that installs what an extra brings, such as "pip install 'torch>=2.6' …"."""
    wanted = _requirements(extra)
    if not wanted:  # not installed at all: from a folder on the path
        return f"pip install '.[{extra}]' in the folder of its sources"
    return f"pip install {' '.join(map(shlex.quote, wanted))}"


def wrong_version(module: str) -> str | None:
    """What to do where a part of an installed package is missing: its version is not one that this
    package asks for. None where it is, or nothing is known of it.

    Args:
        module: that which lacks something, such as "av.video.reformatter".
    """
    package = module.partition(".")[0]
    try:
        installed = importlib.metadata.version(package)
        stated = importlib.metadata.requires("lipsync-fast") or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    for line in stated:
        what, _, condition = line.partition(";")
        wanted = re.sub(r"\s+", "", what)
        if condition or re.split(r"[<>=!~\[]", wanted)[0].lower() != package.lower():
            continue
        return (
            f"{package} {installed} is installed, and lacks what is needed here; "
            f"pip install {shlex.quote(wanted)}"
        )
    return None


def torch_with_cuda() -> str:
    """What to install where torch is missing, or has no CUDA."""
    newest, older = how_to_get("cuda13"), how_to_get("cuda12")
    return f"{newest}; where the driver is older, {older}, from PyTorch's package index"


def _requirements(extra: str) -> list[str]:
    """What an extra asks for beside the package itself."""
    try:
        stated = importlib.metadata.requires("lipsync-fast") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = []
    for line in stated:
        what, _, condition = line.partition(";")
        named = _EXTRA.search(condition)
        if named is None or named[1] != extra:
            continue
        own = re.match(r"lipsync[-_]fast\s*\[([^\]]*)\]", what)
        if own is None:
            found.append(re.sub(r"\s+", "", what))
        else:  # an extra that contains others
            found += [each for other in own[1].split(",") for each in _requirements(other.strip())]
    return found
