# SPDX-License-Identifier: Apache-2.0
"""An avatar imported from a SyncTalk_2D data set made of the golden frames and weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden import synctalk_dataset


@pytest.fixture(scope="session")
def reference_avatar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's folder; its networks are the reference's at full width."""
    pytest.importorskip("torch", reason="the extra train is not installed")
    from lipsync_fast.avatars.importing.build import import_synctalk

    folder = tmp_path_factory.mktemp("golden")
    return import_synctalk(synctalk_dataset(folder), folder / "avatars")
