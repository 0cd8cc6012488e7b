# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several folders of tests share."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # before numpy and torch are loaded: they count cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    gc.disable()  # while tests are collected: all that is loaded stays, and is looked at in vain

import pytest
from forking import Forked, forked
from hypothesis import HealthCheck, settings
from serving import warnings_in
from talking import BUSY_MACHINE, SLOW_MACHINE, Serve
from tiny import for_all, made_once, write_tiny_avatar

from lipsync_fast.client.local import LocalServer

# On a machine that is busy an example takes as long as it takes: that is no failure.
settings.register_profile(
    "tests",
    parent=settings(),
    deadline=None,
    suppress_health_check=[*settings().suppress_health_check, HealthCheck.too_slow],
)
settings.load_profile("tests")


def pytest_collection_finish() -> None:
    """What was loaded and collected is not looked at for garbage any more."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run in an empty folder, so that processes import the installed package, not the checkout."""
    before = Path.cwd()
    # What one test has said is made again for the next one; tests of what is kept say so.
    os.environ["LIPSYNC_FAST_UTTERANCES_DISK_MB"] = "0"
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session", autouse=True)
def no_warnings() -> Iterator[None]:
    """No server of a test's writes a warning of Python's into its log (our own are errors here)."""
    close = LocalServer.close

    def closed(server: LocalServer) -> None:
        warned = warnings_in(server.log())
        close(server)
        assert not warned, warned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalServer, "close", closed)
        yield


@pytest.fixture(scope="session")
def tiny_avatar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole avatar package, quick to run; see ``tiny.py``. Nobody changes it."""
    pytest.importorskip("torch", reason="the extra train is not installed")
    return made_once(tmp_path_factory, "avatars", "tiny", write_tiny_avatar)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    """``lipsync-fast`` in processes that have torch loaded when they begin; see ``forking.py``."""
    pytest.importorskip("torch", reason="the extra train is not installed")
    with forked(for_all(tmp_path_factory)) as running:
        yield running


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Serve]:
    """``lipsync-fast serve`` on free ports for tests that leave it as they find it.

    Gives the server of a configuration, which is started once and serves until the end. What it
    counts, it has counted for others too: compare with what was before.
    """
    with contextlib.ExitStack() as running:
        started: dict[str, LocalServer] = {}

        def serve(config: Mapping[str, Any]) -> LocalServer:
            key = json.dumps(config, sort_keys=True)
            if key not in started:
                started[key] = running.enter_context(LocalServer(config))
            return started[key]

        yield serve


@pytest.fixture(scope="session")
def server(shared_server: Serve) -> LocalServer:
    """A server with the demo avatar and time enough for its frames."""
    return shared_server({"live": {"speakers": 8, **SLOW_MACHINE}, "engines": BUSY_MACHINE})
