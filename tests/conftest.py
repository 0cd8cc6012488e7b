# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import write_tiny_avatar

from lipsync_fast.client.local import LocalServer


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
