# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before numpy and torch are loaded: they count cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings
from tiny import write_tiny_avatar

from lipsync_fast.client.local import LocalServer

# On a machine that is busy an example takes as long as it takes: that is no failure.
settings.register_profile(
    "tests",
    parent=settings(),
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.too_slow],
)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run in an empty folder, so that processes import the installed package, not the checkout."""
    before = Path.cwd()
    # What one test has said is made again for the next one; tests of what is kept say so.
    os.environ["LIPSYNC_FAST_UTTERANCES_DISK_MB"] = "0"
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def tiny_avatar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole avatar package, quick to run; see ``tiny.py``."""
    pytest.importorskip("torch", reason="the extra train is not installed")
    return write_tiny_avatar(tmp_path_factory.mktemp("avatars") / "tiny")


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    """``lipsync-fast serve`` with the demo avatar on free ports, shared by a module's tests."""
    with LocalServer({"live": {"speakers": 4}}) as server:
        yield server
